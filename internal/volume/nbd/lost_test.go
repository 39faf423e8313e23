package nbdvolume

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"cairn/internal/errs"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

// at calls f in the midst of the first request of a kind, which then fails with
// its connection.
func (c *scene) at(what string, f func()) {
	var once sync.Once
	c.disk.onCall(func(ctx context.Context, w string, _, _ int64) (err error) {
		if w == what {
			once.Do(func() {
				done := make(chan struct{})
				go func() {
					defer close(done)
					f()
				}()
				c.t.Cleanup(func() { <-done })
				<-ctx.Done()
				err = ctx.Err()
			})
		}
		return err
	})
}

// hangUpAt ends all connections in the midst of the first request of a kind.
func (c *scene) hangUpAt(what string) {
	c.at(what, func() {
		resume, err := c.exp.Suspend(context.Background(), true)
		if err != nil {
			c.t.Error(err)
			return
		}
		resume()
	})
}

// A read whose server dies in the midst of it goes on when the server is back,
// and the instant holds.
func TestServerComesBack(t *testing.T) {
	disk := newDisk(16 * mib)
	disk.put(letter('a', 12*mib), mib)
	disk.bitmap("cairn-a")
	c := newScene(t, disk, nil)
	in := freeze(t, c.d, c.spec)
	c.at("read", func() {
		resume, err := c.exp.Suspend(context.Background(), true) // kills what is under way
		if err != nil {
			t.Error(err)
			return
		}
		resume()
		c.s.stop()
		again := serveAt(t, "unix", c.s.at.Address)
		again.add(exported("x", disk), disk)
	})
	got := make([]byte, 16*mib)
	ok(t, in.Source(0).ReadAt(t.Context(), got, 0))
	if !bytes.Equal(got, disk.bytes()) {
		t.Error("what was read differs")
	}
	ok(t, in.Check(t.Context()))
	disk.put([]byte{1}, 0)
	wantChanged(t, in.Check(t.Context()), "vol-1")
}

// What comes back in another form is another export: that fails the instant,
// whoever notices first.
func TestServerComesBackChanged(t *testing.T) {
	for name, change := range map[string]func(c *nbd.ExportConfig){
		"larger":        func(c *nbd.ExportConfig) { c.Size += mib },
		"without marks": func(c *nbd.ExportConfig) { c.Contexts = c.Contexts[:1] },
		"in blocks":     func(c *nbd.ExportConfig) { c.BlockSize.Min = 4096 },
	} {
		t.Run(name, func(t *testing.T) {
			disk := newDisk(2 * mib)
			disk.bitmap("b")
			c := newScene(t, disk, nil)
			in := freeze(t, c.d, c.spec)
			ok(t, c.exp.Remove(t.Context()))
			change(&c.cfg)
			c.exp = c.s.add(c.cfg, disk)
			err := in.Source(0).ReadAt(t.Context(), make([]byte, 10), 0)
			wantKind(t, err, errs.Conflict, "volume vol-1")
			if !errors.Is(err, volume.ErrChanged) {
				t.Errorf("ReadAt: %v", err)
			}
		})
	}
}

// One that never comes back is told by the volume's name; where it was is only
// in the log.
func TestServerNeverComesBack(t *testing.T) {
	c := newScene(t, newDisk(mib), nil)
	c.d = hasty(t)
	in := freeze(t, c.d, c.spec)
	g, err := c.d.Freeze(t.Context(), "job-2", []volume.Spec{c.spec}, nil)
	wantKind(t, err, errs.Busy)
	if g != nil {
		t.Error("an instant of nothing")
	}
	c.s.stop()
	src := in.Source(0).(*source)
	_, statusErr := src.conn.status(t.Context(), nbd.BaseAllocation, 0, 10)
	readErr := src.ReadAt(t.Context(), make([]byte, 10), 0)
	checkErr := in.Check(t.Context())
	ok(t, in.Close())
	_, sizeErr := c.d.Size(t.Context(), c.spec)
	_, freezeErr := c.d.Freeze(t.Context(), "job-2", []volume.Spec{c.spec}, nil)
	_, targetErr := c.d.OpenTarget(t.Context(), c.spec)
	for what, err := range map[string]error{
		"status": statusErr, "ReadAt": readErr, "Check": checkErr, "Size": sizeErr, "Freeze": freezeErr, "OpenTarget": targetErr,
	} {
		wantKind(t, err, errs.Unavailable, "volume vol-1", "its NBD server", "log")
		if msg := errs.Message(err); strings.Contains(msg, c.s.at.Address) || strings.Contains(msg, "%2F") {
			t.Errorf("%s tells where the server is: %s", what, msg)
		}
		if !strings.Contains(err.Error(), c.s.at.Address) {
			t.Errorf("%s does not tell the log where the server is: %v", what, err)
		}
	}
}

// An export that is gone while its server runs is not found, and what its
// server refuses is denied; neither tells where.
func TestExportGone(t *testing.T) {
	c := newScene(t, newDisk(mib), nil)
	c.d = hasty(t)
	in := freeze(t, c.d, c.spec)
	ok(t, c.exp.Remove(t.Context()))
	err := in.Check(t.Context())
	wantKind(t, err, errs.NotFound, "volume vol-1", "put it back")
	if strings.Contains(errs.Message(err), c.s.at.Address) {
		t.Error(errs.Message(err))
	}
	c.exp = c.s.add(c.cfg, c.disk)
	ok(t, in.Check(t.Context()))
	c.disk.onCall(func(_ context.Context, what string, _, _ int64) error {
		if what == "read" {
			return nbd.EPERM
		}
		return nil
	})
	wantKind(t, in.Source(0).ReadAt(t.Context(), make([]byte, 10), 0), errs.Denied, "volume vol-1", "does not allow to read it")
}

// A ctx that ends stops a wait for a server, and its cause is the answer.
func TestWaitForAServerEnds(t *testing.T) {
	c := newScene(t, newDisk(mib), nil)
	in := freeze(t, c.d, c.spec)
	c.s.stop()
	tired := errors.New("tired")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(tired)
	for what, err := range map[string]error{
		"read":  in.Source(0).(*source).conn.read(ctx, make([]byte, 10), 0),
		"Check": in.Check(ctx),
	} {
		if !errors.Is(err, tired) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// plainServer speaks as little NBD as is allowed: no structured replies, so no
// contexts; no flush, no zeroing. All is zeros and what is written is dropped.
type plainServer struct {
	t    *testing.T
	at   nbd.URI
	size int64
}

func newPlainServer(t *testing.T, size int64) *plainServer {
	t.Helper()
	path := filepath.Join(shortDir(t), "s")
	l, err := net.Listen("unix", path)
	ok(t, err)
	s := &plainServer{t, nbd.URI{Network: "unix", Address: path}, size}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return // closed below
			}
			all.Go(func() {
				defer nc.Close()
				if err := s.serve(nc); err != nil && !errors.Is(err, io.EOF) {
					t.Error(err)
				}
			})
		}
	})
	t.Cleanup(func() {
		ok(t, l.Close())
		all.Wait()
	})
	return s
}

func (s *plainServer) serve(nc net.Conn) error {
	r, w := bufio.NewReader(nc), bufio.NewWriter(nc)
	put := func(parts ...any) error {
		for _, p := range parts {
			if err := binary.Write(w, binary.BigEndian, p); err != nil {
				return err
			}
		}
		return w.Flush()
	}
	var flags uint32
	if err := errors.Join(put([]byte("NBDMAGICIHAVEOPT"), uint16(1)), binary.Read(r, binary.BigEndian, &flags)); err != nil {
		return err
	}
	const replyMagic, goOption, ack, info, unsupported = uint64(0x3e889045565a9), 7, uint32(1), uint32(3), uint32(1<<31 + 1)
	for going := false; !going; {
		var head struct {
			Magic          uint64
			Option, Length uint32
		}
		if err := binary.Read(r, binary.BigEndian, &head); err != nil {
			return err
		}
		if _, err := r.Discard(int(head.Length)); err != nil {
			return err
		}
		answer := []any{replyMagic, head.Option, unsupported, uint32(0)}
		if going = head.Option == goOption; going {
			answer = []any{
				replyMagic, head.Option, info, uint32(12), uint16(0), uint64(s.size), uint16(1),
				replyMagic, head.Option, ack, uint32(0),
			}
		}
		if err := put(answer...); err != nil {
			return err
		}
	}
	for {
		var q struct {
			Magic          uint32
			Flags, Command uint16
			Cookie, Off    uint64
			Length         uint32
		}
		if err := binary.Read(r, binary.BigEndian, &q); err != nil {
			return err
		}
		var data []byte
		switch q.Command {
		case 0:
			data = make([]byte, q.Length)
		case 1:
			if _, err := r.Discard(int(q.Length)); err != nil {
				return err
			}
		case 2:
			return nil
		default:
			s.t.Errorf("command %d was not offered", q.Command)
		}
		if err := put(uint32(0x67446698), uint32(0), q.Cookie, data); err != nil {
			return err
		}
	}
}
