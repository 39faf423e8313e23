package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"cairn/internal/errs"
)

// What a server may not answer: each costs the connection, no bytes of it are
// handed out, it is not asked again, and the next request gets a new one.
func TestHostileReplies(t *testing.T) {
	const done = chunkFlagDone
	read := func(c *Client) error { return c.ReadAt(context.Background(), make([]byte, 4096), 8192) }
	status := func(c *Client) error {
		_, err := c.Status(context.Background(), BaseAllocation, 8192, 4096)
		return err
	}
	write := func(c *Client) error { return c.WriteAt(context.Background(), make([]byte, 512), 0, 0) }
	half := make([]byte, 2048)
	tests := map[string]struct {
		do    func(c *Client) error
		bytes func(q request) []byte
	}{
		"wrong magic":        {read, func(request) []byte { return make([]byte, 32) }},
		"unknown cookie":     {write, func(q request) []byte { return simpleBytes(0, q.cookie+1) }},
		"chunk for unknown":  {read, func(q request) []byte { return dataChunk(done, q.cookie+9, q.off, half) }},
		"simple read":        {read, func(q request) []byte { return append(simpleBytes(0, q.cookie), make([]byte, 4096)...) }},
		"simple status":      {status, func(q request) []byte { return simpleBytes(0, q.cookie) }},
		"nothing at all":     {read, func(q request) []byte { return chunkBytes(done, chunkNone, q.cookie, nil) }},
		"none with payload":  {read, func(q request) []byte { return chunkBytes(done, chunkNone, q.cookie, []byte{1}) }},
		"none not the last":  {read, func(q request) []byte { return chunkBytes(0, chunkNone, q.cookie, nil) }},
		"half the data":      {read, func(q request) []byte { return dataChunk(done, q.cookie, q.off, half) }},
		"too much data":      {read, func(q request) []byte { return dataChunk(done, q.cookie, q.off, make([]byte, 4097)) }},
		"data before":        {read, func(q request) []byte { return dataChunk(done, q.cookie, q.off-1, make([]byte, 4096)) }},
		"data far away":      {read, func(q request) []byte { return dataChunk(done, q.cookie, 1<<63, half) }},
		"empty data":         {read, func(q request) []byte { return dataChunk(0, q.cookie, q.off, nil) }},
		"data for a write":   {write, func(q request) []byte { return dataChunk(done, q.cookie, q.off, half) }},
		"empty hole":         {read, func(q request) []byte { return holeChunk(0, q.cookie, q.off, 0) }},
		"huge hole":          {read, func(q request) []byte { return holeChunk(0, q.cookie, q.off, 1<<32-1) }},
		"hole of wrong size": {read, func(q request) []byte { return chunkBytes(0, chunkHole, q.cookie, make([]byte, 11)) }},
		"overlap": {read, func(q request) []byte {
			return append(dataChunk(0, q.cookie, q.off, half), holeChunk(done, q.cookie, q.off+2047, 2049)...)
		}},
		"overlap before": {read, func(q request) []byte {
			return append(dataChunk(0, q.cookie, q.off+1024, half), dataChunk(done, q.cookie, q.off, half)...)
		}},
		"twice the same": {read, func(q request) []byte {
			return append(dataChunk(0, q.cookie, q.off, half), dataChunk(done, q.cookie, q.off, half)...)
		}},
		"many chunks": {read, func(q request) []byte {
			var b []byte
			for i := range uint64(4096) {
				b = append(b, holeChunk(0, q.cookie, q.off+i, 1)...)
			}
			return b
		}},
		"simple after chunk": {read, func(q request) []byte {
			return append(dataChunk(0, q.cookie, q.off, half), simpleBytes(EIO, q.cookie)...)
		}},
		"answered twice": {write, func(q request) []byte {
			return append(simpleBytes(0, q.cookie), simpleBytes(0, q.cookie)...)
		}},
		"unknown chunk": {read, func(q request) []byte { return chunkBytes(done, 77, q.cookie, nil) }},
		"huge chunk": {read, func(q request) []byte {
			return binary.BigEndian.AppendUint32(dataChunk(0, q.cookie, 0, nil)[:16], 1<<32-1)
		}},
		"error of 5 bytes": {read, func(q request) []byte { return chunkBytes(done, chunkError, q.cookie, make([]byte, 5)) }},
		"error 0":          {read, func(q request) []byte { return errorChunk(done, chunkError, q.cookie, 0, "x") }},
		"error with more":  {read, func(q request) []byte { return errorChunk(done, chunkError, q.cookie, EIO, "x", 1) }},
		"error text too long": {read, func(q request) []byte {
			return chunkBytes(done, chunkError, q.cookie, []byte("\x00\x00\x00\x05\x00\x09x"))
		}},
		"error offset short": {read, func(q request) []byte { return errorChunk(done, chunkErrorOffset, q.cookie, EIO, "x", 1, 2) }},
		"huge error":         {read, func(q request) []byte { return errorChunk(done, chunkError, q.cookie, EIO, strings.Repeat("x", 9000)) }},
		"status missing":     {status, func(q request) []byte { return chunkBytes(done, chunkNone, q.cookie, nil) }},
		"status of other":    {status, func(q request) []byte { return chunkBytes(done, chunkBlockStatus, q.cookie, be32(6, 4096, 0)) }},
		"status of none":     {status, func(q request) []byte { return chunkBytes(done, chunkBlockStatus, q.cookie, be32(4, 4096, 0)) }},
		"status twice": {status, func(q request) []byte {
			b := chunkBytes(0, chunkBlockStatus, q.cookie, be32(5, 4096, 0))
			return append(b, b...)
		}},
		"status empty":        {status, func(q request) []byte { return chunkBytes(done, chunkBlockStatus, q.cookie, be32(5)) }},
		"status odd":          {status, func(q request) []byte { return chunkBytes(done, chunkBlockStatus, q.cookie, be32(5, 4096, 0, 1)) }},
		"status empty extent": {status, func(q request) []byte { return chunkBytes(done, chunkBlockStatus, q.cookie, be32(5, 0, 0)) }},
		"status beyond":       {status, func(q request) []byte { return chunkBytes(done, chunkBlockStatus, q.cookie, be32(5, 4096, 0, 1, 0)) }},
		"status for a read":   {read, func(q request) []byte { return chunkBytes(done, chunkBlockStatus, q.cookie, be32(5, 4096, 0)) }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			uri := fakeServer(t, usual, func(f *fake) {
				if f.n == 0 {
					if q, _, ok := f.request(); ok {
						f.nc.Write(tt.bytes(q))
					}
				}
				f.honest()
			})
			c := dialFake(t, uri, Options{})
			err := tt.do(c)
			if name == "answered twice" && err == nil { // the fault comes after the answer
				l := c.slots[0].link
				<-l.finished
				err = c.explain(&call{}, l.err)
			}
			if !errors.Is(err, errViolation) || !errs.Is(err, errs.Unavailable) {
				t.Fatalf("error %v", err)
			}
			for _, f := range []func(*Client) error{read, status, write} {
				if err := f(c); err != nil {
					t.Errorf("afterwards: %v", err)
				}
			}
		})
	}
}

// Unusual answers that the protocol allows.
func TestOddButRight(t *testing.T) {
	data := bytes.Repeat([]byte{1, 2, 3, 4}, 1024)
	answers := []func(q request) []byte{
		func(q request) []byte { // backwards, in pieces, with a hole
			b := dataChunk(0, q.cookie, q.off+3000, data[:1096])
			b = append(b, holeChunk(0, q.cookie, q.off+1000, 2000)...)
			b = append(b, dataChunk(0, q.cookie, q.off, data[:1000])...)
			return append(b, chunkBytes(chunkFlagDone, chunkNone, q.cookie, nil)...)
		},
		func(q request) []byte { // an error after all the data
			b := dataChunk(0, q.cookie, q.off, data)
			return append(b, errorChunk(chunkFlagDone, chunkErrorOffset, q.cookie, EIO, "", make([]byte, 8)...)...)
		},
		func(q request) []byte { // two errors: the first counts
			b := errorChunk(0, chunkError, q.cookie, ENOMEM, "first \x1b[2J")
			return append(b, errorChunk(chunkFlagDone, 1<<15+99, q.cookie, EIO, "")...)
		},
		func(q request) []byte { return simpleBytes(EOVERFLOW, q.cookie) },
		func(q request) []byte { return simpleBytes(4711, q.cookie) },
	}
	uri := fakeServer(t, usual, func(f *fake) {
		for _, a := range answers {
			if q, _, ok := f.request(); ok {
				f.nc.Write(a(q))
			}
		}
		f.honest()
	})
	c := dialFake(t, uri, Options{})
	p := bytes.Repeat([]byte{9}, 4096)
	if err := c.ReadAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	want := append(append(bytes.Clone(data[:1000]), make([]byte, 2000)...), data[:1096]...)
	if !bytes.Equal(p, want) {
		t.Error("other bytes")
	}
	for _, want := range []Errno{EIO, ENOMEM, EOVERFLOW, 4711} {
		err := c.ReadAt(t.Context(), p, 0)
		if !errors.Is(err, want) || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("error %v, want %v", err, want)
		}
	}
	if err := c.ReadAt(t.Context(), p, 0); err != nil {
		t.Error(err)
	}
}

// What a server may not do in the handshake.
func TestHostileHandshake(t *testing.T) {
	hello := (&fake{}).hello()
	ack := optionReply(optStructuredReply, repAck, nil)
	set := func(replies ...[]byte) []byte {
		return append(append(bytes.Clone(hello), ack...), bytes.Join(replies, nil)...)
	}
	context := func(id uint32, name string) []byte {
		return optionReply(optSetMetaContext, repMetaContext, append(be32(id), name...))
	}
	setAck := optionReply(optSetMetaContext, repAck, nil)
	info := func(data ...byte) []byte { return set(setAck, optionReply(optGo, repInfo, data)) }
	goAck := optionReply(optGo, repAck, nil)
	export := append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0}, 0, 1) // 4096 bytes
	tests := map[string][]byte{
		"nothing":              {},
		"half a greeting":      hello[:10],
		"another protocol":     []byte("SSH-2.0-OpenSSH_9.2p1 Debian\r\n"),
		"wrong reply magic":    append(bytes.Clone(hello), make([]byte, 20)...),
		"reply to other":       append(bytes.Clone(hello), optionReply(optList, repAck, nil)...),
		"reply too long":       append(bytes.Clone(hello), binary.BigEndian.AppendUint32(ack[:16:16], 1<<31)...),
		"unwanted reply":       append(bytes.Clone(hello), optionReply(optStructuredReply, repServer, nil)...),
		"context not asked":    set(context(1, "a:b")),
		"context twice":        set(context(1, BaseAllocation), context(2, BaseAllocation)),
		"context id twice":     set(context(1, BaseAllocation), context(1, "x:y")),
		"context without name": set(context(1, "")),
		"endless replies":      set(setAck, bytes.Repeat(optionReply(optGo, repInfo, []byte{0, 9}), maxOptionReplies)),
		"info of one byte":     info(1),
		"export info short":    info(0, 0, 1),
		"block sizes short":    info(0, 3, 1),
		"GO without size":      set(setAck, goAck),
		"reply 1 to GO":        set(setAck, optionReply(optGo, repServer, export)),
		"no flags":             set(setAck, optionReply(optGo, repInfo, make([]byte, 12)), goAck),
		"negative size":        set(setAck, optionReply(optGo, repInfo, append([]byte{0, 0, 0x80}, make([]byte, 9)...)), goAck),
		"minimum not a power":  set(setAck, optionReply(optGo, repInfo, export), optionReply(optGo, repInfo, append([]byte{0, 3}, be32(3, 4096, 8192)...)), goAck),
		"minimum 0":            set(setAck, optionReply(optGo, repInfo, export), optionReply(optGo, repInfo, append([]byte{0, 3}, be32(0, 4096, 8192)...)), goAck),
		"minimum huge":         set(setAck, optionReply(optGo, repInfo, export), optionReply(optGo, repInfo, append([]byte{0, 3}, be32(1<<20, 1<<20, 1<<20)...)), goAck),
		"maximum small":        set(setAck, optionReply(optGo, repInfo, export), optionReply(optGo, repInfo, append([]byte{0, 3}, be32(512, 512, 100)...)), goAck),
	}
	for name, bytes := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			uri := rawServer(t, func(f *fake) {
				f.nc.Write(bytes)
				f.nc.(interface{ CloseWrite() error }).CloseWrite()
				f.r.WriteTo(discard{})
			})
			_, err := Dial(t.Context(), uri, Options{Contexts: usual.contexts})
			if !errs.Is(err, errs.Unavailable) {
				t.Errorf("Dial: %v", err)
			}
		})
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// Refusals that say what is wrong.
func TestDialRefused(t *testing.T) {
	refuse := func(kind uint32) func(f *fake) {
		return func(f *fake) {
			f.nc.Write(f.hello())
			f.nc.Write(optionReply(optStructuredReply, repErrUnsup, nil))
			f.nc.Write(optionReply(optGo, kind, []byte("because")))
			f.r.WriteTo(discard{})
		}
	}
	oddSize := usual
	oddSize.size, oddSize.block = 1000, []uint32{512, 512, 4096}
	old := (&fake{}).hello()
	old[17] = 0
	tests := map[string]struct {
		serve func(f *fake)
		want  errs.Kind
	}{
		"unknown":  {refuse(repErrUnknown), errs.NotFound},
		"policy":   {refuse(repErrPolicy), errs.Denied},
		"TLS":      {refuse(repErrTLSReqd), errs.Invalid},
		"shutdown": {refuse(repErrShutdown), errs.Unavailable},
		"invalid":  {refuse(repErrInvalid), errs.Unavailable},
		"old": {func(f *fake) {
			f.nc.Write(old)
			f.r.WriteTo(discard{})
		}, errs.Invalid},
		"odd size": {func(f *fake) {
			f.offer = oddSize
			f.shake()
		}, errs.Invalid},
	}
	for name, tt := range tests {
		_, err := Dial(t.Context(), rawServer(t, tt.serve), Options{})
		if errs.KindOf(err) != tt.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Dial(t.Context(), URI{Network: "unix", Address: shortDir(t) + "/none"}, Options{}); !errs.Is(err, errs.Unavailable) {
		t.Errorf("no server: %v", err)
	}
	// EXPORT_NAME's only no is to hang up.
	uri := rawServer(t, func(f *fake) {
		f.nc.Write(f.hello())
		f.nc.Write(optionReply(optStructuredReply, repErrUnsup, nil))
		f.nc.Write(optionReply(optGo, repErrUnsup, nil))
		f.r.Discard(4 + optionLen + optionLen + 8 + optionLen)
	})
	if _, err := Dial(t.Context(), uri, Options{}); !errs.Is(err, errs.NotFound) {
		t.Errorf("EXPORT_NAME: %v", err)
	}
}

// A server that says nothing is given up, by the timeout or the context.
func TestDialTimesOut(t *testing.T) {
	uri := rawServer(t, func(f *fake) { f.r.WriteTo(discard{}) })
	if _, err := Dial(t.Context(), uri, Options{DialTimeout: 20 * time.Millisecond}); !errs.Is(err, errs.Unavailable) {
		t.Errorf("timeout: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, uri, Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("context: %v", err)
	}
}
