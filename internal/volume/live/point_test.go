package live

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"

	"cairn/internal/errs"
	"cairn/internal/foldertest"
	"cairn/internal/nbd"
)

// A served point reads as its tree, takes no writes, and is gone after
// UnservePoint, which leaves clients alone unless forced.
func TestServedPoint(t *testing.T) {
	server := nbd.NewServer(nbd.Limits{}, nil)
	path := filepath.Join(t.TempDir(), "nbd.sock")
	stop := serve(t, server, path)
	defer stop()
	f := newForest()
	c := config(foldertest.InMemory(t), f)
	c.Server, c.URIs = server, func(name string) []string { return []string{name} }
	d := open(t, c)
	ctx := t.Context()
	content := append(bytes.Repeat([]byte("tree"), 1<<17), make([]byte, 1<<19+512)...)
	ref := f.plant(content)
	ok(t, d.ServePoint(ctx, "ss-A", ref))
	ok(t, d.ServePoint(ctx, "ss-A", ref))
	if n := f.open.Load(); n != 1 {
		t.Errorf("%d trees are open", n)
	}
	if err := d.ServePoint(ctx, "ss-B", "nothing"); !errs.Is(err, errs.NotFound) {
		t.Errorf("a point that cannot be opened: %v", err)
	}
	uri := nbd.URI{Network: "unix", Address: path, Export: "ss-A"}
	cl, err := nbd.Dial(ctx, uri, nbd.Options{Contexts: []string{nbd.BaseAllocation}})
	ok(t, err)
	if cl.Size() != int64(len(content)) || !cl.ReadOnly() {
		t.Errorf("%d bytes, read-only %v", cl.Size(), cl.ReadOnly())
	}
	got := make([]byte, len(content))
	ok(t, cl.ReadAt(ctx, got, 0))
	same(t, "point", got, content)
	if err := cl.WriteAt(ctx, got[:512], 0, 0); err == nil {
		t.Error("a point can be written to")
	}
	if e := d.PointExported("ss-A"); e.Clients == 0 || len(e.URIs) != 1 {
		t.Errorf("exported as %+v", e)
	}
	f.away.Store(true)
	if err := cl.ReadAt(ctx, got, 0); err == nil {
		t.Error("read from a repository that is away")
	}
	f.away.Store(false)
	ok(t, cl.ReadAt(ctx, got, 0))
	if err := d.UnservePoint(ctx, "ss-A", false); !errs.Is(err, errs.Conflict) {
		t.Errorf("unserve under a client: %v", err)
	}
	ok(t, d.UnservePoint(ctx, "ss-A", true))
	ok(t, d.UnservePoint(ctx, "ss-A", false))
	if err := cl.ReadAt(ctx, got, 0); err == nil {
		t.Error("a point can be read that is no longer served")
	}
	cl.Close()
	if e := d.PointExported("ss-A"); len(e.URIs) != 0 {
		t.Errorf("still exported as %+v", e)
	}
	ok(t, d.ServePoint(ctx, "ss-A", ref))
	for e := d.PointExported("ss-A"); e.Clients > 0; e = d.PointExported("ss-A") {
		time.Sleep(time.Millisecond)
	}
	ok(t, d.Close())
	if n := f.open.Load(); n != 0 {
		t.Errorf("%d trees stay open", n)
	}
}
