package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// handshake haggles until the client is attached to an export.
func (c *conn) handshake() error {
	if err := c.nc.SetDeadline(time.Now().Add(c.server.limits.Handshake)); err != nil {
		return err
	}
	hello := binary.BigEndian.AppendUint64(nil, magicHello)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, helloFixedNewstyle|helloNoZeroes)
	if _, err := c.nc.Write(hello); err != nil {
		return err
	}
	var answer [4]byte
	if _, err := io.ReadFull(c.r, answer[:]); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(answer[:])
	if flags&^(helloFixedNewstyle|helloNoZeroes) != 0 {
		return fmt.Errorf("the client wants unknown handshake flags: %#x", flags)
	}
	for range c.server.limits.Options {
		attached, err := c.haggle(flags)
		if err != nil {
			return err
		}
		if attached {
			return c.begin()
		}
	}
	return fmt.Errorf("more than %d options in one handshake", c.server.limits.Options)
}

// begin ends the handshake of an attached client.
func (c *conn) begin() error {
	err := c.nc.SetDeadline(time.Time{})
	// drain sets its flag before its deadline, so it is seen here or its
	// deadline stays.
	if err == nil && c.draining.Load() {
		err = errGoodbye
	}
	if err != nil {
		c.export.detach(c)
	}
	return err
}

// haggle takes one option and answers it; true: the client is attached.
func (c *conn) haggle(helloFlags uint32) (attached bool, err error) {
	var head [optionLen]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return false, err
	}
	if binary.BigEndian.Uint64(head[:]) != magicOption {
		return false, errors.New("no NBD option: wrong magic")
	}
	code, length := binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:])
	if uint64(length) > uint64(c.server.limits.OptionBytes) {
		return false, c.refuseLong(code, length)
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(c.r, data); err != nil {
		return false, err
	}
	switch code {
	case optExportName:
		return true, c.exportByName(string(data), helloFlags)
	case optGo, optInfo:
		return c.infoOrGo(code, data)
	}
	var reply []byte
	switch code {
	case optAbort:
		if err := c.answer(optionReply(code, repAck, nil)); err != nil {
			return false, err
		}
		return false, errGoodbye
	case optList:
		reply = c.listExports(data)
	case optStructuredReply:
		if reply = optionReply(code, repAck, nil); length > 0 {
			reply = optionReply(code, repErrInvalid, []byte("STRUCTURED_REPLY takes no data"))
			break
		}
		c.structured = true
	case optListMetaContext, optSetMetaContext:
		reply = c.metaContexts(code, data)
	case optStartTLS:
		reply = optionReply(code, repErrPolicy, []byte("TLS is not offered here"))
	default:
		reply = optionReply(code, repErrUnsup, nil)
	}
	return false, c.answer(reply)
}

func (c *conn) answer(reply []byte) error {
	_, err := c.nc.Write(reply)
	return err
}

// refuseLong skips the data of an option that is too long, if that is not too
// much either.
func (c *conn) refuseLong(code, length uint32) error {
	if code == optExportName || length > 16<<20 {
		return fmt.Errorf("option %d has %d bytes of data", code, length)
	}
	if _, err := c.r.Discard(int(length)); err != nil {
		return err
	}
	return c.answer(optionReply(code, repErrTooBig, []byte("the option's data is too long")))
}

// exportByName is the old way to attach: the only answer to a mistake is to
// hang up.
func (c *conn) exportByName(name string, helloFlags uint32) error {
	e := c.server.lookup(name)
	if e == nil {
		return errors.New("the client asked for an export that does not exist")
	}
	if r := e.attach(c); r != nil {
		return errors.New(r.text)
	}
	reply := binary.BigEndian.AppendUint64(nil, uint64(c.size))
	reply = binary.BigEndian.AppendUint16(reply, c.settle())
	if helloFlags&helloNoZeroes == 0 {
		reply = append(reply, make([]byte, exportPadding)...)
	}
	if err := c.answer(reply); err != nil {
		e.detach(c)
		return err
	}
	return nil
}

// settle fixes what was negotiated for the export that the client is attached
// to; contexts of another one are void.
func (c *conn) settle() (flags uint16) {
	if c.granting != c.export {
		c.contexts = nil
	}
	return c.flagsFor(c.export)
}

func (c *conn) flagsFor(e *Export) uint16 {
	flags := e.cfg.transmissionFlags()
	if c.structured {
		flags |= flagDF
	}
	return flags
}

func (c *conn) listExports(data []byte) []byte {
	if len(data) > 0 {
		return optionReply(optList, repErrInvalid, []byte("LIST takes no data"))
	}
	var reply []byte
	for _, e := range c.server.list() {
		reply = append(reply, optionReply(optList, repServer, append(appendString(nil, e.cfg.Name), e.cfg.Description...))...)
	}
	return append(reply, optionReply(optList, repAck, nil)...)
}

// infoOrGo answers INFO, or GO, which attaches the client.
func (c *conn) infoOrGo(code uint32, data []byte) (attached bool, err error) {
	name, asked, ok := parseInfo(data)
	if !ok {
		return false, c.answer(optionReply(code, repErrInvalid, []byte("malformed request for an export")))
	}
	e := c.server.lookup(name)
	refused := &refusal{repErrUnknown, "no such export"}
	if e != nil {
		refused = nil
		if e.cfg.BlockSize.Min > 1 && !asked[infoBlockSize] {
			refused = &refusal{repErrBlockSizeReqd, "the export has a minimum block size; ask for it"}
		}
	}
	if refused == nil && code == optGo {
		refused = e.attach(c)
	}
	if refused != nil {
		return false, c.answer(optionReply(code, refused.code, []byte(refused.text)))
	}
	size, flags := e.sizeNow(), c.flagsFor(e)
	if code == optGo {
		size, flags = c.size, c.settle()
	}
	if err := c.answer(infoReplies(code, &e.cfg, size, flags, asked)); err != nil {
		if code == optGo {
			e.detach(c)
		}
		return false, err
	}
	return code == optGo, nil
}

// parseInfo reads the data of INFO and GO.
func parseInfo(data []byte) (name string, asked map[uint16]bool, ok bool) {
	name, data, ok = cutString(data)
	if !ok || len(data) < 2 || len(data) != 2+2*int(binary.BigEndian.Uint16(data)) {
		return "", nil, false
	}
	asked = map[uint16]bool{}
	for data = data[2:]; len(data) > 0; data = data[2:] {
		asked[binary.BigEndian.Uint16(data)] = true
	}
	return name, asked, true
}

func infoReplies(code uint32, cfg *ExportConfig, size int64, flags uint16, asked map[uint16]bool) []byte {
	info := binary.BigEndian.AppendUint16(nil, infoExport)
	info = binary.BigEndian.AppendUint64(info, uint64(size))
	info = binary.BigEndian.AppendUint16(info, flags)
	reply := optionReply(code, repInfo, info)

	info = binary.BigEndian.AppendUint16(nil, infoBlockSize)
	for _, n := range []int64{cfg.BlockSize.Min, cfg.BlockSize.Preferred, cfg.BlockSize.Max} {
		info = binary.BigEndian.AppendUint32(info, uint32(n))
	}
	reply = append(reply, optionReply(code, repInfo, info)...)

	for kind, text := range map[uint16]string{infoName: cfg.Name, infoDescription: cfg.Description} {
		if asked[kind] && (kind == infoName || text != "") {
			info = append(binary.BigEndian.AppendUint16(nil, kind), text...)
			reply = append(reply, optionReply(code, repInfo, info)...)
		}
	}
	return append(reply, optionReply(code, repAck, nil)...)
}

// metaContexts answers LIST_META_CONTEXT and SET_META_CONTEXT. Whatever SET
// says, what was set before is void.
func (c *conn) metaContexts(code uint32, data []byte) []byte {
	if code == optSetMetaContext {
		c.contexts, c.granting = nil, nil
	}
	if !c.structured {
		return optionReply(code, repErrInvalid, []byte("structured replies come first"))
	}
	name, queries, ok := parseQueries(data)
	if !ok {
		return optionReply(code, repErrInvalid, []byte("malformed queries for meta contexts"))
	}
	e := c.server.lookup(name)
	if e == nil {
		return optionReply(code, repErrUnknown, []byte("no such export"))
	}
	var reply []byte
	for _, context := range e.cfg.Contexts {
		if !wanted(context, queries, code == optListMetaContext) {
			continue
		}
		var id uint32 // of LIST it is 0
		if code == optSetMetaContext {
			id = uint32(len(c.contexts))
			c.contexts = append(c.contexts, context)
		}
		reply = append(reply, optionReply(code, repMetaContext, append(binary.BigEndian.AppendUint32(nil, id), context...))...)
	}
	if code == optSetMetaContext {
		c.granting = e
	}
	return append(reply, optionReply(code, repAck, nil)...)
}

// wanted says whether the queries ask for a context. A list may also be of a
// namespace ("base:"), or of all, by no query.
func wanted(context string, queries []string, list bool) bool {
	for _, q := range queries {
		if q == context {
			return true
		}
		if n := len(q); list && n > 1 && q[n-1] == ':' && len(context) > n && context[:n] == q {
			return true
		}
	}
	return list && len(queries) == 0
}

func parseQueries(data []byte) (name string, queries []string, ok bool) {
	name, data, ok = cutString(data)
	if !ok || len(data) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(data)
	data = data[4:]
	if uint64(n)*4 > uint64(len(data)) {
		return "", nil, false
	}
	for range n {
		var q string
		if q, data, ok = cutString(data); !ok {
			return "", nil, false
		}
		queries = append(queries, q)
	}
	return name, queries, len(data) == 0
}
