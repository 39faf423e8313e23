package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"cairn/internal/errs"
	"cairn/internal/nbd"
	"cairn/test/e2e/harness"
)

// rawClient speaks the plainest NBD there is (EXPORT_NAME, simple replies), by
// the NBD project's doc/proto.md alone. It asks for what no decent client asks
// for.
type rawClient struct {
	nc     net.Conn
	cookie uint64
}

const (
	rawRead = iota
	rawWrite
	rawDisconnect
	rawFlush
	rawTrim
	rawCache
	rawZero
	rawStatus
)

// Errors of the protocol.
const (
	rawEINVAL    = 22
	rawENOSPC    = 28
	rawESHUTDOWN = 108
)

func rawDial(uri string) (*rawClient, error) {
	u, err := nbd.ParseURI(uri)
	if err != nil {
		return nil, err
	}
	nc, err := net.Dial(u.Network, u.Address)
	if err != nil {
		return nil, err
	}
	c := &rawClient{nc: nc}
	if err := c.shake(u.Export); err != nil {
		return nil, fmt.Errorf("the handshake: %w", firstOf(err, nc.Close()))
	}
	return c, nil
}

func firstOf(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

func (c *rawClient) shake(export string) error {
	if err := c.nc.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	var hello [18]byte
	if _, err := io.ReadFull(c.nc, hello[:]); err != nil {
		return err
	}
	if string(hello[:16]) != "NBDMAGICIHAVEOPT" {
		return fmt.Errorf("the server says %q", hello)
	}
	out := binary.BigEndian.AppendUint32(nil, 3) // fixed newstyle, no zeroes
	out = append(out, "IHAVEOPT"...)
	out = binary.BigEndian.AppendUint32(out, 1) // EXPORT_NAME
	out = binary.BigEndian.AppendUint32(out, uint32(len(export)))
	if _, err := c.nc.Write(append(out, export...)); err != nil {
		return err
	}
	_, err := io.ReadFull(c.nc, make([]byte, 10)) // size and flags
	return err
}

// ask sends a request and gives the error code of the reply, and what was read.
func (c *rawClient) ask(cmd, flags uint16, off uint64, length uint32, data []byte) (code uint32, got []byte, err error) {
	c.cookie++
	out := binary.BigEndian.AppendUint32(nil, 0x25609513)
	out = binary.BigEndian.AppendUint16(out, flags)
	out = binary.BigEndian.AppendUint16(out, cmd)
	out = binary.BigEndian.AppendUint64(out, c.cookie)
	out = binary.BigEndian.AppendUint64(out, off)
	out = binary.BigEndian.AppendUint32(out, length)
	if _, err := c.nc.Write(append(out, data...)); err != nil {
		return 0, nil, err
	}
	var reply [16]byte
	if _, err := io.ReadFull(c.nc, reply[:]); err != nil {
		return 0, nil, err
	}
	code = binary.BigEndian.Uint32(reply[4:])
	if binary.BigEndian.Uint32(reply[:]) != 0x67446698 || binary.BigEndian.Uint64(reply[8:]) != c.cookie {
		return 0, nil, fmt.Errorf("the reply is %x", reply)
	}
	if cmd == rawRead && code == 0 {
		got = make([]byte, length)
		_, err = io.ReadFull(c.nc, got)
	}
	return code, got, err
}

// refusals: what cannot be done is answered, changes nothing, and the
// connection goes on.
func (s *stand) refusals(t *testing.T) {
	program(t, "nbdcopy", s.source(t), s.uri)
	for _, uri := range []string{s.uri, s.tcp} {
		c, err := rawDial(uri)
		if err != nil {
			t.Fatal(err)
		}
		const end, n = standSize, 8192
		data := bytes.Repeat([]byte{0xee}, n)
		for i, r := range []struct {
			what       string
			cmd, flags uint16
			off        uint64
			data       []byte
			code       uint32
		}{
			{"a write behind the end", rawWrite, 0, end, data, rawENOSPC},
			{"a write across the end", rawWrite, 0, end - n/2, data, rawENOSPC},
			{"a write at the end of all numbers", rawWrite, 0, 1<<64 - n, data, rawENOSPC},
			{"a write with an unknown flag", rawWrite, 1 << 9, 0, data, rawEINVAL},
			{"zeroes across the end", rawZero, 0, end - n/2, nil, rawENOSPC},
			{"a trim across the end", rawTrim, 0, end - n/2, nil, rawEINVAL},
			{"a read across the end", rawRead, 0, end - n/2, nil, rawEINVAL},
			{"a read behind the end", rawRead, 0, 1 << 63, nil, rawEINVAL},
			{"a status that was not negotiated", rawStatus, 0, 0, nil, rawEINVAL},
			{"an unknown command", 99, 0, 0, nil, rawEINVAL},
		} {
			if code, _, err := c.ask(r.cmd, r.flags, r.off, n, r.data); err != nil || code != r.code {
				t.Fatalf("%s is answered with %d, want %d; %v", r.what, code, r.code, err)
			}
			mine := bytes.Repeat([]byte{byte(i + 1)}, 512)
			s.want.Write(mine, int64(i*700))
			if code, _, err := c.ask(rawWrite, 1, uint64(i*700), 512, mine); err != nil || code != 0 {
				t.Fatalf("a write after %s: %d, %v", r.what, code, err)
			}
			if code, got, err := c.ask(rawRead, 0, uint64(i*700), 512, nil); err != nil || code != 0 || !bytes.Equal(got, mine) {
				t.Fatalf("a read after %s: %d, %v", r.what, code, err)
			}
		}
		if err := c.nc.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s.agree(t)
}

// deletion: a volume with clients is not deleted; once it is, nobody gets it,
// however he asks.
func (s *stand) deletion(t *testing.T) {
	c, err := rawDial(s.uri)
	if err != nil {
		t.Fatal(err)
	}
	s.remove(t).WantError(t, http.StatusConflict, "1400")
	if code, _, err := c.ask(rawWrite, 0, 0, 512, make([]byte, 512)); err != nil || code != 0 {
		t.Fatalf("a client of a volume that was not deleted: %d, %v", code, err)
	}
	if err := c.nc.Close(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.comeAndGo() }()
	var r harness.Response
	if !harness.Poll(time.Minute, func() bool {
		r = s.remove(t)
		return r.Status != http.StatusConflict
	}) {
		t.Fatal("the volume is never without a client")
	}
	s.srv.API().OK(t, r.Begin(t))
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if out, err := tryProgram(t, "nbdinfo", s.uri); err == nil {
		t.Errorf("nbdinfo of a deleted volume: %s", out)
	}
	u, err := nbd.ParseURI(s.uri)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nbd.Dial(t.Context(), u, nbd.Options{Attempts: 1}); !errs.Is(err, errs.NotFound) {
		t.Errorf("a client of a deleted volume: %v", err)
	}
}

func (s *stand) remove(t *testing.T) harness.Response {
	t.Helper()
	return s.srv.API().Do(t, harness.Request{Method: http.MethodDelete, Path: "volumes/" + s.id})
}

// comeAndGo writes, with a new connection now and then, until it cannot any
// more. Whoever has just come when the volume is deleted must be told so, or
// be hung up on.
func (s *stand) comeAndGo() error {
	for {
		c, err := rawDial(s.uri)
		if err != nil {
			return nil //nolint:nilerr // the volume is gone
		}
		for range 3 {
			code, _, err := c.ask(rawWrite, 0, 0, 512, make([]byte, 512))
			if err != nil || code == rawESHUTDOWN {
				return c.nc.Close()
			}
			if code != 0 {
				return firstOf(fmt.Errorf("the client is told %d", code), c.nc.Close())
			}
		}
		if err := c.nc.Close(); err != nil {
			return err
		}
		time.Sleep(time.Millisecond) // else there is always somebody
	}
}
