package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/internal/errs"
)

func TestClientRefuses(t *testing.T) {
	var requests atomic.Int64
	o := usual
	o.flags, o.block = flagHasFlags, []uint32{512, 4096, 8192}
	serve := func(f *fake) {
		for {
			q, _, ok := f.request()
			if !ok {
				return
			}
			requests.Add(1)
			f.nc.Write(f.right(&q))
		}
	}
	c := dialFake(t, fakeServer(t, o, serve), Options{})
	o.flags |= flagReadOnly
	ro := dialFake(t, fakeServer(t, o, serve), Options{})
	ctx, p := t.Context(), make([]byte, 512)
	status := func(name string, off, n int64) error {
		_, err := c.Status(ctx, name, off, n)
		return err
	}
	tests := map[string]struct {
		err  error
		kind errs.Kind
		is   error
	}{
		"read beyond":     {c.ReadAt(ctx, p, c.Size()-511), errs.Invalid, nil},
		"read before":     {c.ReadAt(ctx, p, -1), errs.Invalid, nil},
		"write beyond":    {c.WriteAt(ctx, p, c.Size(), 0), errs.Invalid, nil},
		"write unaligned": {c.WriteAt(ctx, p[:100], 0, 0), errs.Invalid, nil},
		"write read-only": {ro.WriteAt(ctx, p, 0, 0), errs.Denied, EPERM},
		"trim read-only":  {ro.Trim(ctx, 0, 512, 0), errs.Denied, EPERM},
		"zero read-only":  {ro.Zero(ctx, 0, 512, 0), errs.Denied, EPERM},
		"FUA":             {c.WriteAt(ctx, p, 0, FUA), errs.Invalid, ENOTSUP},
		"flush":           {c.Flush(ctx), errs.Invalid, ENOTSUP},
		"trim":            {c.Trim(ctx, 0, 512, 0), errs.Invalid, ENOTSUP},
		"trim overflow":   {c.Trim(ctx, 1, 1<<63-1, 0), errs.Invalid, nil},
		"zero":            {c.Zero(ctx, 0, 512, 0), errs.Invalid, ENOTSUP},
		"fast zero":       {c.Zero(ctx, 0, 512, FastZero), errs.Invalid, ENOTSUP},
		"status beyond":   {status(BaseAllocation, 0, c.Size()+1), errs.Invalid, nil},
		"status of other": {status("no:such", 0, 1), errs.Invalid, ErrNoContext},
	}
	for name, tt := range tests {
		if !errs.Is(tt.err, tt.kind) || (tt.is != nil && !errors.Is(tt.err, tt.is)) {
			t.Errorf("%s: %v", name, tt.err)
		}
	}
	if err := ro.Flush(ctx); err != nil || !ro.ReadOnly() {
		t.Errorf("a flush of a read-only export: %v", err)
	}
	if n := requests.Load(); n != 0 {
		t.Errorf("the server saw %d requests", n)
	}
	for _, err := range []error{c.ReadAt(ctx, nil, c.Size()), c.WriteAt(ctx, nil, 0, 0)} {
		if err != nil {
			t.Errorf("of no bytes: %v", err)
		}
	}
}

// Block sizes are kept: what the server sees is aligned and not too large.
func TestClientAligns(t *testing.T) {
	o := usual
	o.block = []uint32{4096, 8192, 20 << 10}
	var mu sync.Mutex
	var seen []request
	uri := fakeServer(t, o, func(f *fake) {
		for {
			q, _, ok := f.request()
			if !ok {
				return
			}
			mu.Lock()
			seen = append(seen, q)
			mu.Unlock()
			f.nc.Write(f.right(&q))
		}
	})
	c := dialFake(t, uri, Options{MaxRequest: 10000})
	if got := c.BlockSize(); got != (BlockSize{4096, 8192, 20 << 10}) {
		t.Errorf("block sizes %v", got)
	}
	p := make([]byte, 100<<10)
	if err := c.ReadAt(t.Context(), p, 1000); err != nil {
		t.Fatal(err)
	}
	for i := range p {
		if p[i] != byte(1000+i) {
			t.Fatalf("byte %d is %d", i, p[i])
		}
	}
	if err := errors.Join(c.WriteAt(t.Context(), p, 8192, 0), c.Trim(t.Context(), 4095, 8194, 0), c.Trim(t.Context(), 4097, 4096, 0)); err != nil {
		t.Fatal(err)
	}
	got, err := c.Status(t.Context(), BaseAllocation, 5000, 20)
	if err != nil || fmt.Sprint(got) != "[{5000 20 3}]" {
		t.Errorf("status %v, %v", got, err)
	}
	bytesOf := map[uint16]uint32{}
	for _, q := range seen {
		if q.off%4096 != 0 || q.length%4096 != 0 || q.length == 0 || q.length > 8192 {
			t.Errorf("%s of %d at %d", commandName(q.cmd), q.length, q.off)
		}
		bytesOf[q.cmd] += q.length
	}
	if want := map[uint16]uint32{cmdRead: 104 << 10, cmdWrite: 100 << 10, cmdTrim: 8192, cmdBlockStatus: 4096}; fmt.Sprint(bytesOf) != fmt.Sprint(want) {
		t.Errorf("bytes by command %v, want %v", bytesOf, want)
	}
}

// Old and plain servers do.
func TestPlainServers(t *testing.T) {
	for _, o := range []offer{
		{size: 1 << 20, flags: flagHasFlags, simple: true},
		{size: 1 << 20, flags: flagHasFlags, simple: true, oldstyle: true},
		{size: 1 << 20, flags: flagHasFlags, oldstyle: true},
	} {
		c := dialFake(t, fakeServer(t, o, (*fake).honest), Options{})
		p := make([]byte, 1000)
		if err := c.ReadAt(t.Context(), p, 7); err != nil || p[10] != 17 || len(c.Contexts()) != 0 {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// FUA is a flush where the server has no FUA.
func TestFUAByFlush(t *testing.T) {
	o := usual
	o.flags = flagHasFlags | flagFlush | flagWriteZeroes | flagFastZero
	var seen []uint16
	uri := fakeServer(t, o, func(f *fake) {
		for {
			q, _, ok := f.request()
			if !ok {
				return
			}
			seen = append(seen, q.cmd, q.flags)
			f.nc.Write(f.right(&q))
		}
	})
	c := dialFake(t, uri, Options{})
	if err := errors.Join(c.WriteAt(t.Context(), make([]byte, 10), 0, FUA), c.Zero(t.Context(), 0, 10, FUA|FastZero|NoHole)); err != nil {
		t.Fatal(err)
	}
	want := []uint16{cmdWrite, 0, cmdFlush, 0, cmdWriteZeroes, cmdFlagFastZero | cmdFlagNoHole, cmdFlush, 0}
	if !slices.Equal(seen, want) {
		t.Errorf("requests and flags %v, want %v", seen, want)
	}
}

func TestContextsOfNamespace(t *testing.T) {
	o := usual
	o.contexts = []string{BaseAllocation, "qemu:dirty-bitmap:a", "qemu:allocation-depth", "qemu:dirty-bitmap:b"}
	uri := fakeServer(t, o, (*fake).honest)
	for _, tt := range []struct{ ask, want []string }{
		{[]string{"qemu:dirty-bitmap:"}, []string{"qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"}},
		{[]string{BaseAllocation, "qemu:dirty-bitmap:", "qemu:dirty-bitmap:a"}, []string{BaseAllocation, "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"}},
		{[]string{"none:"}, nil},
		{[]string{"none:such"}, nil},
	} {
		c := dialFake(t, uri, Options{Contexts: tt.ask})
		if !slices.Equal(c.Contexts(), tt.want) {
			t.Errorf("%q: %q", tt.ask, c.Contexts())
		}
		for _, name := range tt.want {
			if got, err := c.Status(t.Context(), name, 0, 99999); err != nil || len(got) != 1 {
				t.Errorf("%s: %v, %v", name, got, err)
			}
		}
	}
}

// Status joins neighbours, goes on where the server stopped, and ends early in
// a volume in shreds.
func TestStatusPieces(t *testing.T) {
	o := usual
	o.size, o.contexts = 1<<40, []string{BaseAllocation}
	uri := fakeServer(t, o, func(f *fake) {
		for {
			q, _, ok := f.request()
			if !ok {
				return
			}
			body := be32(5)
			for i := range uint64(200) { // a quarter of them is a hole
				body = append(body, be32(1024, uint32((q.off/1024+i)%4/3))...)
			}
			f.nc.Write(chunkBytes(chunkFlagDone, chunkBlockStatus, q.cookie, body))
		}
	})
	c := dialFake(t, uri, Options{})
	got, err := c.Status(t.Context(), BaseAllocation, 1024, 1<<30)
	if err != nil || len(got) < enoughExtents || len(got) > enoughExtents+200 {
		t.Fatalf("%d extents, %v", len(got), err)
	}
	if got[0] != (Extent{1024, 2 * 1024, 0}) || got[1] != (Extent{3 * 1024, 1024, 1}) {
		t.Errorf("begins with %v", got[:2])
	}
	for i := range got[1:] {
		if got[i].End() != got[i+1].Off || got[i].Flags == got[i+1].Flags {
			t.Fatalf("%v, then %v", got[i], got[i+1])
		}
	}
}

// Reads are asked again on a new connection, as often as is allowed.
func TestReadsAreRepeated(t *testing.T) {
	var tries atomic.Int64
	uri := fakeServer(t, usual, func(f *fake) {
		if f.n < 3 {
			if q, _, ok := f.request(); ok && f.n == 1 {
				f.nc.Write(f.right(&q)[:100]) // dies in the middle of the data
			}
			tries.Add(1)
			return
		}
		f.honest()
	})
	c := dialFake(t, uri, Options{Attempts: 4})
	p := make([]byte, 4096)
	if err := c.ReadAt(t.Context(), p, 3); err != nil || p[4] != 7 || tries.Load() != 3 {
		t.Errorf("%v after %d lost connections", err, tries.Load())
	}
	never := fakeServer(t, usual, func(f *fake) {
		f.request()
		tries.Add(1)
	})
	tries.Store(0)
	c = dialFake(t, never, Options{Attempts: 3})
	if err := c.ReadAt(t.Context(), p, 3); !errs.Is(err, errs.Unavailable) || tries.Load() != 3 {
		t.Errorf("%v after %d lost connections", err, tries.Load())
	}
}

// A server that says that it is shutting down is left at once: what may be
// repeated is asked on a new connection, and a write is not.
func TestShutdownIsALoss(t *testing.T) {
	uri := fakeServer(t, usual, func(f *fake) {
		for f.n < 3 {
			q, _, ok := f.request()
			if !ok {
				return
			}
			f.nc.Write(simpleBytes(ESHUTDOWN, q.cookie))
		}
		f.honest()
	})
	c := dialFake(t, uri, Options{Attempts: 4, Connections: 1})
	if err := c.WriteAt(t.Context(), make([]byte, 512), 0, 0); !errors.Is(err, ESHUTDOWN) {
		t.Errorf("WriteAt: %v", err)
	}
	if err := c.ReadAt(t.Context(), make([]byte, 512), 0); err != nil {
		t.Errorf("ReadAt: %v", err)
	}
	never := fakeServer(t, usual, func(f *fake) {
		if q, _, ok := f.request(); ok {
			f.nc.Write(simpleBytes(ESHUTDOWN, q.cookie))
		}
	})
	c = dialFake(t, never, Options{Attempts: 2})
	if err := c.ReadAt(t.Context(), make([]byte, 512), 0); !errors.Is(err, ESHUTDOWN) || !errs.Is(err, errs.Unavailable) {
		t.Errorf("ReadAt: %v", err)
	}
}

// A write that may have arrived is never sent twice; one that was not sent is.
func TestWritesAreNotRepeated(t *testing.T) {
	var writes atomic.Int64
	uri := fakeServer(t, usual, func(f *fake) {
		if _, _, ok := f.request(); ok {
			writes.Add(1)
		}
	})
	c := dialFake(t, uri, Options{})
	for name, f := range map[string]func() error{
		"write": func() error { return c.WriteAt(t.Context(), make([]byte, 512), 0, 0) },
		"zero":  func() error { return c.Zero(t.Context(), 0, 512, 0) },
		"trim":  func() error { return c.Trim(t.Context(), 0, 512, 0) },
	} {
		writes.Store(0)
		if err := f(); !errors.Is(err, ErrUncertain) || writes.Load() != 1 {
			t.Errorf("%s: %v, sent %d times", name, err, writes.Load())
		}
	}
	// The client notices by the write itself that the connection is gone, or
	// has noticed before; either way nothing of the write was sent.
	gone := make(chan struct{})
	uri = fakeServer(t, usual, func(f *fake) {
		if f.n == 0 {
			f.nc.Close()
			close(gone)
			return
		}
		f.honest()
	})
	c = dialFake(t, uri, Options{})
	<-gone
	if err := c.WriteAt(t.Context(), make([]byte, 512), 0, 0); err != nil && !errors.Is(err, ErrUncertain) {
		t.Errorf("after the connection was lost: %v", err)
	}
	if err := c.WriteAt(t.Context(), make([]byte, 512), 0, 0); err != nil {
		t.Errorf("on the new connection: %v", err)
	}
}

// After a lost connection the next flush tells of unflushed writes, once.
func TestLostWrites(t *testing.T) {
	kick := make(chan struct{})
	uri := fakeServer(t, usual, func(f *fake) {
		go func() {
			select {
			case <-kick:
				f.nc.Close()
			case <-t.Context().Done():
			}
		}()
		f.honest()
	})
	c := dialFake(t, uri, Options{})
	ctx, p := t.Context(), make([]byte, 512)
	lose := func() {
		kick <- struct{}{}
		l := c.slots[0].link
		<-l.finished
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.Flush(ctx))
	lose()
	must(c.Flush(ctx)) // nothing was written
	must(c.WriteAt(ctx, p, 0, FUA))
	lose()
	must(c.Flush(ctx)) // what was written is durable
	must(c.WriteAt(ctx, p, 0, 0))
	must(c.Flush(ctx))
	lose()
	must(c.Flush(ctx)) // so too
	must(c.WriteAt(ctx, p, 0, 0))
	lose()
	must(c.WriteAt(ctx, p, 512, 0))
	if err := c.Flush(ctx); !errors.Is(err, ErrLostWrites) || !errs.Is(err, errs.Unavailable) {
		t.Errorf("Flush: %v", err)
	}
	must(c.Flush(ctx))
}

// What comes after a reconnect must be the same export.
func TestExportChanged(t *testing.T) {
	for name, change := range map[string]func(o *offer){
		"size":     func(o *offer) { o.size *= 2 },
		"flags":    func(o *offer) { o.flags |= flagReadOnly },
		"blocks":   func(o *offer) { o.block = []uint32{512, 4096, 4096} },
		"contexts": func(o *offer) { o.contexts = o.contexts[:1] },
		"replies":  func(o *offer) { o.simple = true },
	} {
		uri := rawServer(t, func(f *fake) {
			f.offer = usual
			if f.n > 0 {
				change(&f.offer)
			}
			if f.shake() && f.n > 0 {
				f.honest()
			}
		})
		c := dialFake(t, uri, Options{})
		if err := c.ReadAt(t.Context(), make([]byte, 10), 0); !errs.Is(err, errs.Conflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A server that starts again is found, and its exports a little later.
func TestServerRestarts(t *testing.T) {
	s := serve(t, Limits{})
	m := newMemory(exportSize)
	s.add(everything("v", exportSize), m)
	c := s.dial("v", Options{Attempts: 10})
	if err := c.WriteAt(t.Context(), []byte("before"), 0, FUA); err != nil {
		t.Fatal(err)
	}
	s.stop()
	again := make(chan struct{})
	go func() {
		defer close(again)
		time.Sleep(50 * time.Millisecond)
		s := serveAt(t, Limits{}, s.path)
		time.Sleep(150 * time.Millisecond)
		s.Add(everything("v", exportSize), m)
	}()
	p := make([]byte, 6)
	if err := c.ReadAt(t.Context(), p, 0); err != nil || string(p) != "before" {
		t.Errorf("%q, %v", p, err)
	}
	<-again
}

// Several connections only where the server allows them.
func TestConnections(t *testing.T) {
	s := serve(t, Limits{})
	many := s.add(everything("many", exportSize), newMemory(exportSize))
	cfg := everything("one", exportSize)
	cfg.MultiConn = false
	one := s.add(cfg, newMemory(exportSize))
	for _, tt := range []struct {
		e    *Export
		want int
	}{{many, 3}, {one, 1}} {
		c := s.dial(tt.e.cfg.Name, Options{Connections: 3})
		for range 10 {
			if err := c.WriteAt(t.Context(), make([]byte, 10), 0, 0); err != nil {
				t.Fatal(err)
			}
		}
		if n := tt.e.Connections(); n != tt.want {
			t.Errorf("%s: %d connections", tt.e.cfg.Name, n)
		}
	}
}

// Dial may be the caller's.
func TestOwnDialer(t *testing.T) {
	uri := fakeServer(t, usual, (*fake).honest)
	c := dialFake(t, URI{Network: "x", Address: "y"}, Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if network != "x" || address != "y" {
			t.Errorf("dials %s %s", network, address)
		}
		return (&net.Dialer{}).DialContext(ctx, uri.Network, uri.Address)
	}})
	if err := c.ReadAt(t.Context(), make([]byte, 10), 0); err != nil {
		t.Error(err)
	}
}

// The ranges of a read in any order and size of chunks, against a map.
func TestCover(t *testing.T) {
	c := &call{request: request{off: 100, length: 1000}}
	for _, r := range [][2]int64{{100, 10}, {120, 10}, {110, 10}, {1090, 10}, {130, 960}} {
		if _, err := c.cover(uint64(r[0]), r[1]); err != nil {
			t.Fatalf("%v: %v", r, err)
		}
	}
	if len(c.covered) != 1 || c.covered[0].Len != 1000 {
		t.Errorf("covered %v", c.covered)
	}
	for _, r := range [][2]int64{{99, 1}, {1100, 1}, {500, 1}, {100, 0}} {
		if _, err := c.cover(uint64(r[0]), r[1]); !errors.Is(err, errViolation) {
			t.Errorf("%v: %v", r, err)
		}
	}
}

// A server that sends the text of an error cannot put it before the user.
func TestServersTextIsForTheLog(t *testing.T) {
	uri := fakeServer(t, usual, func(f *fake) {
		if q, _, ok := f.request(); ok {
			f.nc.Write(errorChunk(chunkFlagDone, chunkError, q.cookie, ENOSPC, "call this number"))
		}
		f.honest()
	})
	c := dialFake(t, uri, Options{})
	err := c.ReadAt(t.Context(), make([]byte, 512), 0)
	if !errs.Is(err, errs.Full) || !errors.Is(err, ENOSPC) || bytes.Contains([]byte(errs.Message(err)), []byte("number")) {
		t.Errorf("%v: %s", err, errs.Message(err))
	}
	if !bytes.Contains([]byte(err.Error()), []byte("number")) {
		t.Errorf("the log learns %v", err)
	}
}
