package nbd

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// fake is one connection of a server that does as the test says.
type fake struct {
	t     testing.TB
	nc    net.Conn
	r     *bufio.Reader
	n     int // which connection, from 0
	offer offer

	granted []int // places of contexts in the offer
}

// offer is what a fake server lets a client negotiate.
type offer struct {
	size     int64
	flags    uint16
	block    []uint32 // three block sizes; nil: none are told
	simple   bool     // no structured replies
	oldstyle bool     // no GO
	contexts []string
}

var usual = offer{size: 1 << 20, flags: flagHasFlags | flagFlush | flagFUA | flagTrim | flagWriteZeroes, contexts: []string{BaseAllocation, "x:y"}}

// fakeServer runs serve for every connection until the test ends.
func fakeServer(t testing.TB, o offer, serve func(f *fake)) URI {
	t.Helper()
	return rawServer(t, func(f *fake) {
		f.offer = o
		if f.shake() {
			serve(f)
		}
	})
}

func rawServer(t testing.TB, serve func(f *fake)) URI {
	t.Helper()
	path := filepath.Join(shortDir(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	running.Go(func() {
		for n := 0; ; n++ {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, nc)
			mu.Unlock()
			running.Go(func() {
				defer nc.Close()
				serve(&fake{t: t, nc: nc, r: bufio.NewReader(nc), n: n})
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, nc := range open {
			nc.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return URI{Network: "unix", Address: path}
}

func (f *fake) hello() []byte {
	b := binary.BigEndian.AppendUint64(nil, magicHello)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	return binary.BigEndian.AppendUint16(b, helloFixedNewstyle|helloNoZeroes)
}

// shake haggles; false: the client went away.
func (f *fake) shake() bool {
	f.nc.Write(f.hello())
	if _, err := f.r.Discard(4); err != nil {
		return false
	}
	for {
		head := make([]byte, optionLen)
		if _, err := io.ReadFull(f.r, head); err != nil {
			return false
		}
		code := binary.BigEndian.Uint32(head[8:])
		data := make([]byte, binary.BigEndian.Uint32(head[12:]))
		if _, err := io.ReadFull(f.r, data); err != nil {
			return false
		}
		reply := optionReply(code, repAck, nil)
		switch {
		case code == optStructuredReply && f.offer.simple, code == optGo && f.offer.oldstyle:
			reply = optionReply(code, repErrUnsup, nil)
		case code == optListMetaContext, code == optSetMetaContext:
			reply = append(f.contexts(code, data), reply...)
		case code == optGo:
			reply = append(f.info(), reply...)
		case code == optExportName:
			reply = f.info()[optionReplyLen+2:][:exportReplyLen]
		}
		f.nc.Write(reply)
		if (code == optGo && !f.offer.oldstyle) || code == optExportName {
			return true
		}
	}
}

func (f *fake) contexts(code uint32, data []byte) []byte {
	_, queries, ok := parseQueries(data)
	if !ok {
		f.t.Errorf("queries %q", data)
	}
	var reply []byte
	for i, c := range f.offer.contexts {
		if wanted(c, queries, code == optListMetaContext) {
			if code == optSetMetaContext {
				f.granted = append(f.granted, i)
			}
			reply = append(reply, optionReply(code, repMetaContext, append(binary.BigEndian.AppendUint32(nil, uint32(i+5)), c...))...)
		}
	}
	return reply
}

func (f *fake) info() []byte {
	info := binary.BigEndian.AppendUint16(nil, infoExport)
	info = binary.BigEndian.AppendUint64(info, uint64(f.offer.size))
	info = binary.BigEndian.AppendUint16(info, f.offer.flags)
	reply := optionReply(optGo, repInfo, info)
	if f.offer.block != nil {
		info = binary.BigEndian.AppendUint16(nil, infoBlockSize)
		for _, n := range f.offer.block {
			info = binary.BigEndian.AppendUint32(info, n)
		}
		reply = append(reply, optionReply(optGo, repInfo, info)...)
	}
	return reply
}

// request reads one; false: the client went away.
func (f *fake) request() (q request, data []byte, ok bool) {
	head := make([]byte, requestLen)
	if _, err := io.ReadFull(f.r, head); err != nil {
		return q, nil, false
	}
	if !q.parse(head) {
		f.t.Errorf("request %x", head)
	}
	if q.cmd == cmdWrite {
		data = make([]byte, q.length)
		if _, err := io.ReadFull(f.r, data); err != nil {
			return q, nil, false
		}
	}
	return q, data, q.cmd != cmdDisconnect
}

// honest answers whatever comes, reads with the low byte of the offset.
func (f *fake) honest() {
	for {
		q, _, ok := f.request()
		if !ok {
			return
		}
		f.nc.Write(f.right(&q))
	}
}

// right is an answer to q without a fault.
func (f *fake) right(q *request) []byte {
	data := make([]byte, q.length)
	for i := range data {
		data[i] = byte(q.off) + byte(i)
	}
	switch {
	case q.cmd == cmdBlockStatus:
		var b []byte
		for _, i := range f.granted {
			b = append(b, chunkBytes(doneIf(i == f.granted[len(f.granted)-1]), chunkBlockStatus, q.cookie, be32(uint32(i+5), q.length, 3))...)
		}
		return b
	case q.cmd == cmdRead && !f.offer.simple:
		return dataChunk(chunkFlagDone, q.cookie, q.off, data)
	case q.cmd == cmdRead:
		return append(simpleBytes(0, q.cookie), data...)
	}
	return simpleBytes(0, q.cookie)
}

func simpleBytes(code Errno, cookie uint64) []byte {
	b := make([]byte, simpleReplyLen)
	putSimple(b, code, cookie)
	return b
}

func chunkBytes(flags, kind uint16, cookie uint64, payload []byte) []byte {
	b := make([]byte, chunkLen, chunkLen+len(payload))
	(&chunk{flags, kind, cookie, uint32(len(payload))}).put(b)
	return append(b, payload...)
}

func dataChunk(flags uint16, cookie, off uint64, data []byte) []byte {
	return chunkBytes(flags, chunkData, cookie, append(binary.BigEndian.AppendUint64(nil, off), data...))
}

func holeChunk(flags uint16, cookie, off uint64, n uint32) []byte {
	return chunkBytes(flags, chunkHole, cookie, binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, off), n))
}

func errorChunk(flags, kind uint16, cookie uint64, code Errno, text string, more ...byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(code))
	b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
	return chunkBytes(flags, kind, cookie, append(append(b, text...), more...))
}

func be32(all ...uint32) []byte {
	var b []byte
	for _, n := range all {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	return b
}

func dialFake(t testing.TB, uri URI, opt Options) *Client {
	t.Helper()
	if opt.Contexts == nil {
		opt.Contexts = usual.contexts
	}
	opt.DialTimeout = 5 * time.Second
	c, err := Dial(t.Context(), uri, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
