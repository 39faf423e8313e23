package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"cairn/internal/errs"
)

const (
	maxOptionReply   = 64 << 10 // bytes of one reply that a server may send
	maxOptionReplies = 4096     // to one option
)

// errViolation is in the chain of errors about a server that breaks the
// protocol. Its connection is closed, and nothing is tried again.
var errViolation = errors.New("the server breaks the NBD protocol")

func violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errViolation, fmt.Sprintf(format, args...))
}

// exportInfo is what a handshake agreed on.
type exportInfo struct {
	size       int64
	flags      uint16
	block      BlockSize
	structured bool
	contexts   map[string]uint32 // granted, with their ids
}

func (i *exportInfo) can(flag uint16) bool { return i.flags&flag != 0 }

// names is the granted contexts, sorted.
func (i *exportInfo) names() []string {
	var names []string
	for name := range i.contexts {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// replaces says why a connection that agreed on i cannot stand in for one
// that agreed on old.
func (i *exportInfo) replaces(old *exportInfo) error {
	switch {
	case i.size != old.size:
		return fmt.Errorf("its size was %d bytes and is %d", old.size, i.size)
	case i.flags != old.flags:
		return fmt.Errorf("its flags were %#x and are %#x", old.flags, i.flags)
	case i.block != old.block:
		return fmt.Errorf("its block sizes were %v and are %v", old.block, i.block)
	case i.structured != old.structured || !slices.Equal(i.names(), old.names()):
		return fmt.Errorf("its contexts were %q and are %q", old.names(), i.names())
	}
	return nil
}

// haggler is the client's side of a handshake.
type haggler struct {
	nc     net.Conn
	r      *bufio.Reader
	export string
	info   exportInfo
}

// connect dials and haggles within ctx and timeout.
func connect(ctx context.Context, uri URI, opt *Options) (net.Conn, *haggler, error) {
	ctx, cancel := context.WithTimeout(ctx, opt.DialTimeout)
	defer cancel()
	nc, err := opt.Dial(ctx, uri.Network, uri.Address)
	if err != nil {
		return nil, nil, err
	}
	h := &haggler{nc: nc, r: bufio.NewReaderSize(nc, readAhead), export: uri.Export}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	err = h.shake(opt.Contexts)
	if !stop() {
		err = errors.Join(ctx.Err(), err)
	}
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return nc, h, nil
}

func (h *haggler) shake(contexts []string) error {
	noZeroes, err := h.hello()
	if err != nil {
		return err
	}
	h.info.block = BlockSize{Min: 1, Preferred: 4096, Max: defaultMaxBlock}
	refused, err := h.ask(optStructuredReply, nil, nil)
	if err != nil {
		return err
	}
	h.info.structured = refused == nil
	if h.info.structured && len(contexts) > 0 {
		if err := h.setContexts(contexts); err != nil {
			return err
		}
	}
	data := appendString(nil, h.export)
	data = binary.BigEndian.AppendUint16(data, 1)
	data = binary.BigEndian.AppendUint16(data, infoBlockSize)
	told := false
	refused, err = h.ask(optGo, data, func(kind uint32, data []byte) error {
		if kind != repInfo || len(data) < 2 {
			return violation("reply %#x of %d bytes to GO", kind, len(data))
		}
		told = told || binary.BigEndian.Uint16(data) == infoExport
		return h.readInfo(binary.BigEndian.Uint16(data), data[2:])
	})
	switch {
	case err != nil:
		return err
	case refused != nil && refused.code == repErrUnsup:
		return h.exportName(noZeroes)
	case refused != nil:
		return h.explain(refused)
	case !told:
		return violation("GO succeeded without a size")
	}
	return h.info.check()
}

// explain makes an error of a refused GO.
func (h *haggler) explain(r *refusal) error {
	cause := fmt.Errorf("option reply %#x: %q", r.code, r.text)
	switch r.code {
	case repErrUnknown:
		return errs.Wrap(errs.NotFound, cause, "the NBD server has no export %q", h.export)
	case repErrPolicy:
		return errs.Wrap(errs.Denied, cause, "the NBD server refuses the export %q now; is it in use?", h.export)
	case repErrTLSReqd:
		return errs.Wrap(errs.Invalid, cause, "the NBD server wants TLS, which is not supported yet")
	case repErrShutdown:
		return errs.Wrap(errs.Unavailable, cause, "the NBD server is shutting down")
	}
	return errs.Wrap(errs.Unavailable, cause, "the NBD server refuses the export %q", h.export)
}

func (h *haggler) hello() (noZeroes bool, err error) {
	var b [helloLen]byte
	if _, err := io.ReadFull(h.r, b[:]); err != nil {
		return false, fmt.Errorf("the server's greeting: %w", err)
	}
	if binary.BigEndian.Uint64(b[:]) != magicHello {
		return false, violation("the greeting is not NBD's")
	}
	flags := binary.BigEndian.Uint16(b[16:])
	if binary.BigEndian.Uint64(b[8:]) != magicOption || flags&helloFixedNewstyle == 0 {
		return false, errs.New(errs.Invalid, "the NBD server speaks an old form of the protocol; fixed newstyle is needed")
	}
	answer := uint32(helloFixedNewstyle) | uint32(flags)&helloNoZeroes
	_, err = h.nc.Write(binary.BigEndian.AppendUint32(nil, answer))
	return answer&helloNoZeroes != 0, err
}

// ask sends an option and hands each reply before the last to each (nil: none
// may come). The server's no is refused, not err.
func (h *haggler) ask(code uint32, data []byte, each func(kind uint32, data []byte) error) (refused *refusal, err error) {
	if _, err := h.nc.Write(option(code, data)); err != nil {
		return nil, err
	}
	for range maxOptionReplies {
		var head [optionReplyLen]byte
		if _, err := io.ReadFull(h.r, head[:]); err != nil {
			return nil, fmt.Errorf("the server's answer to option %d: %w", code, err)
		}
		length := binary.BigEndian.Uint32(head[16:])
		if binary.BigEndian.Uint64(head[:]) != magicOptionReply || binary.BigEndian.Uint32(head[8:]) != code || length > maxOptionReply {
			return nil, violation("not an answer to option %d", code)
		}
		body := make([]byte, length)
		if _, err := io.ReadFull(h.r, body); err != nil {
			return nil, err
		}
		kind := binary.BigEndian.Uint32(head[12:])
		switch {
		case kind == repAck:
			return nil, nil
		case kind >= 1<<31:
			return &refusal{kind, string(body[:min(len(body), 512)])}, nil
		case each == nil:
			return nil, violation("reply %#x to option %d", kind, code)
		}
		if err := each(kind, body); err != nil {
			return nil, err
		}
	}
	return nil, violation("more than %d replies to option %d", maxOptionReplies, code)
}

func (h *haggler) readInfo(kind uint16, data []byte) error {
	switch kind {
	case infoExport:
		if len(data) != 10 {
			return violation("an export's information of %d bytes", len(data))
		}
		h.info.size = int64(binary.BigEndian.Uint64(data))
		h.info.flags = binary.BigEndian.Uint16(data[8:])
	case infoBlockSize:
		if len(data) != 12 {
			return violation("block sizes of %d bytes", len(data))
		}
		h.info.block = BlockSize{
			Min:       int64(binary.BigEndian.Uint32(data)),
			Preferred: int64(binary.BigEndian.Uint32(data[4:])),
			Max:       int64(binary.BigEndian.Uint32(data[8:])),
		}
	}
	return nil // other kinds were not asked for and may be ignored
}

// check refuses what nobody could work with, and bounds the rest.
func (i *exportInfo) check() error {
	bs := &i.block
	switch {
	case i.size < 0:
		return violation("a size of %d bytes", uint64(i.size))
	case i.flags&flagHasFlags == 0:
		return violation("transmission flags %#x", i.flags)
	case !powerOfTwo(bs.Min) || bs.Min > 64<<10 || bs.Max < bs.Min:
		return violation("block sizes from %d to %d", bs.Min, bs.Max)
	case i.size%bs.Min != 0:
		return errs.New(errs.Invalid, "the NBD export's size of %d bytes is no multiple of its minimum block size %d, so its end cannot be read", i.size, bs.Min)
	}
	bs.Max = max(min(bs.Max, defaultMaxBlock)&^(bs.Min-1), bs.Min)
	bs.Preferred = min(max(bs.Preferred, bs.Min), bs.Max)
	return nil
}

// setContexts asks for contexts; names that end in a colon stand for all that
// the server has under them. What it has not is left out.
func (h *haggler) setContexts(wanted []string) error {
	var names, spaces []string
	for _, name := range wanted {
		if strings.HasSuffix(name, ":") {
			spaces = append(spaces, name)
		} else {
			names = append(names, name)
		}
	}
	if len(spaces) > 0 {
		refused, err := h.ask(optListMetaContext, h.queries(spaces), func(kind uint32, data []byte) error {
			_, name, err := parseContext(kind, data)
			if err == nil && !slices.Contains(names, name) && slices.ContainsFunc(spaces, func(s string) bool { return strings.HasPrefix(name, s) }) {
				names = append(names, name)
			}
			return err
		})
		if err != nil || refused != nil {
			return err // a server without contexts grants none
		}
	}
	if len(names) == 0 {
		return nil
	}
	granted := map[string]uint32{}
	refused, err := h.ask(optSetMetaContext, h.queries(names), func(kind uint32, data []byte) error {
		id, name, err := parseContext(kind, data)
		if err != nil {
			return err
		}
		for other, otherID := range granted {
			if other == name || otherID == id {
				return violation("the context %q is granted twice, or under another's id", name)
			}
		}
		if !slices.Contains(names, name) {
			return violation("a context %q that nobody asked for", name)
		}
		granted[name] = id
		return nil
	})
	if err == nil && refused == nil {
		h.info.contexts = granted
	}
	return err
}

func (h *haggler) queries(names []string) []byte {
	data := appendString(nil, h.export)
	data = binary.BigEndian.AppendUint32(data, uint32(len(names)))
	for _, name := range names {
		data = appendString(data, name)
	}
	return data
}

func parseContext(kind uint32, data []byte) (id uint32, name string, err error) {
	if kind != repMetaContext || len(data) < 5 || len(data) > 4+maxStringLen {
		return 0, "", violation("reply %#x of %d bytes about a meta context", kind, len(data))
	}
	return binary.BigEndian.Uint32(data), string(data[4:]), nil
}

// exportName attaches to a server that knows no GO.
func (h *haggler) exportName(noZeroes bool) error {
	if _, err := h.nc.Write(option(optExportName, []byte(h.export))); err != nil {
		return err
	}
	b := make([]byte, exportReplyLen+exportPadding)
	if noZeroes {
		b = b[:exportReplyLen]
	}
	if _, err := io.ReadFull(h.r, b); err != nil {
		return errs.Wrap(errs.NotFound, err, "the NBD server does not give the export %q", h.export)
	}
	if err := h.readInfo(infoExport, b[:exportReplyLen]); err != nil {
		return err
	}
	return h.info.check()
}

// Options say how to use a server. A field that is 0 gets the default beside
// it.
type Options struct {
	// Contexts that Status will be asked for. A name that ends in a colon
	// ("qemu:dirty-bitmap:") stands for all that the server has under it.
	Contexts []string
	// Connections is how many may be used if the server allows it: 4.
	Connections int
	InFlight    int           // 64; requests on one connection
	MaxRequest  int64         // 4 MiB; larger ones are split
	DialTimeout time.Duration // 10 s; to connect and haggle
	// Attempts is how often in all a request is tried that may be, each time
	// on a new connection: 5, waiting 50 ms and then twice as long, up to 2 s.
	// 1: never again.
	Attempts int
	// Dial makes a connection; nil: the net package's way.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

func (o *Options) setDefaults() {
	setDefault(&o.Connections, 4)
	setDefault(&o.InFlight, 64)
	setDefault(&o.MaxRequest, 4<<20)
	setDefault(&o.DialTimeout, 10*time.Second)
	setDefault(&o.Attempts, 5)
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	o.Contexts = slices.Clone(o.Contexts)
}
