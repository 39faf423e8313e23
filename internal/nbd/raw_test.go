package nbd

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

// raw is a client that sends what it is told, right or wrong.
type raw struct {
	t  testing.TB
	nc net.Conn
	r  *bufio.Reader
}

// optReply is one reply to an option.
type optReply struct {
	kind uint32
	data string
}

// answer is a simple reply, or one chunk.
type answer struct {
	simple bool
	code   Errno // simple replies and errors
	chunk
	data []byte
}

func (s *served) raw() *raw {
	s.t.Helper()
	nc, err := net.Dial("unix", s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(30 * time.Second))
	return &raw{s.t, nc, bufio.NewReader(nc)}
}

// shaken has greeted.
func (s *served) shaken() *raw {
	s.t.Helper()
	r := s.raw()
	b := r.read(helloLen)
	if binary.BigEndian.Uint64(b) != magicHello || binary.BigEndian.Uint64(b[8:]) != magicOption || binary.BigEndian.Uint16(b[16:]) != 3 {
		s.t.Fatalf("greeting %x", b)
	}
	r.write([]byte{0, 0, 0, 3})
	return r
}

// attached has an export, with base:allocation where that is negotiable.
func (s *served) attached(name string, structured bool) *raw {
	s.t.Helper()
	r := s.shaken()
	if structured {
		r.ask(optStructuredReply, nil, repAck)
		r.ask(optSetMetaContext, queriesData(name, BaseAllocation))
	}
	got := r.option(optGo, infoData(name, infoBlockSize))
	if got[len(got)-1].kind != repAck {
		s.t.Fatalf("GO: %v", got)
	}
	return r
}

func (r *raw) write(b []byte) {
	r.t.Helper()
	if _, err := r.nc.Write(b); err != nil {
		r.t.Fatal(err)
	}
}

func (r *raw) read(n int) []byte {
	r.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(r.r, b); err != nil {
		r.t.Fatal(err)
	}
	return b
}

// ended fails unless the server hung up.
func (r *raw) ended() {
	r.t.Helper()
	if n, err := io.Copy(io.Discard, r.r); n > 0 {
		r.t.Errorf("%d bytes came before the end", n)
	} else if e, ok := err.(net.Error); ok && e.Timeout() {
		r.t.Error("the connection did not end")
	}
}

// option sends one and returns all replies to it.
func (r *raw) option(code uint32, data []byte) []optReply {
	r.t.Helper()
	r.write(option(code, data))
	var all []optReply
	for {
		b := r.read(optionReplyLen)
		if binary.BigEndian.Uint64(b) != magicOptionReply || binary.BigEndian.Uint32(b[8:]) != code {
			r.t.Fatalf("reply %x to option %d", b, code)
		}
		kind := binary.BigEndian.Uint32(b[12:])
		all = append(all, optReply{kind, string(r.read(int(binary.BigEndian.Uint32(b[16:]))))})
		if kind == repAck || kind >= 1<<31 {
			return all
		}
	}
}

// ask wants the kinds of replies, in order; none named means any.
func (r *raw) ask(code uint32, data []byte, want ...uint32) []optReply {
	r.t.Helper()
	got := r.option(code, data)
	for i, g := range got {
		if len(want) > 0 && (len(got) != len(want) || g.kind != want[i]) {
			r.t.Fatalf("option %d with %q: replies %x, want kinds %x", code, data, got, want)
		}
	}
	return got
}

// send sends a request, whose cookie is made of what it is.
func (r *raw) send(cmd, flags uint16, off uint64, length uint32, payload ...byte) {
	r.t.Helper()
	b := make([]byte, requestLen, requestLen+len(payload))
	(&request{flags: flags, cmd: cmd, cookie: cookieOf(cmd, off), off: off, length: length}).put(b)
	r.write(append(b, payload...))
}

func cookieOf(cmd uint16, off uint64) uint64 { return off<<8 | uint64(cmd) }

func (r *raw) answer() answer {
	r.t.Helper()
	b := r.read(simpleReplyLen)
	var a answer
	switch binary.BigEndian.Uint32(b) {
	case magicSimple:
		a.simple = true
		a.code = Errno(binary.BigEndian.Uint32(b[4:]))
		a.cookie = binary.BigEndian.Uint64(b[8:])
	case magicChunk:
		a.parse(append(b, r.read(4)...))
		a.data = r.read(int(a.length))
		if a.kind&chunkIsError != 0 {
			a.code = Errno(binary.BigEndian.Uint32(a.data))
		}
	default:
		r.t.Fatalf("reply %x", b)
	}
	return a
}

// do sends a request and wants one answer with that code.
func (r *raw) do(want Errno, cmd, flags uint16, off uint64, length uint32, payload ...byte) answer {
	r.t.Helper()
	r.send(cmd, flags, off, length, payload...)
	a := r.answer()
	if a.code != want || a.cookie != cookieOf(cmd, off) || (!a.simple && a.flags&chunkFlagDone == 0) {
		r.t.Fatalf("%s flags %#x, %d at %d: got %+v, want %v", commandName(cmd), flags, length, off, a, want)
	}
	return a
}

func queriesData(name string, queries ...string) []byte {
	return (&haggler{export: name}).queries(queries)
}

func infoData(name string, asked ...uint16) []byte {
	b := binary.BigEndian.AppendUint16(appendString(nil, name), uint16(len(asked)))
	for _, a := range asked {
		b = binary.BigEndian.AppendUint16(b, a)
	}
	return b
}
