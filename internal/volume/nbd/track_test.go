package nbdvolume

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/volume"
)

const trusted = "&cairn-bitmaps=trust"

// newTracked is a scene of 8 MiB with data up to 4, whose bitmaps may be
// believed.
func newTracked(t *testing.T, names ...string) *scene {
	t.Helper()
	disk := newDisk(8 * mib)
	disk.put(letter('a', 4*mib), 0)
	for _, name := range names {
		disk.bitmap(name)
	}
	c := newScene(t, disk, nil)
	c.spec = register(t, c.d, "vol-1", c.s.uri("x")+trusted)
	return c
}

// point takes a point and settles it.
func (c *scene) point(checkpoint volume.Checkpoint) {
	c.t.Helper()
	in := freeze(c.t, c.d, c.spec)
	ok(c.t, in.Check(c.t.Context()))
	ok(c.t, in.Settle(c.t.Context(), []volume.Checkpoint{checkpoint}, committed))
	ok(c.t, in.Close())
}

// changed is what a new instant calls changed since a checkpoint.
func (c *scene) changed(base volume.Checkpoint) ([]extent.Range, error) {
	c.t.Helper()
	in := freeze(c.t, c.d, c.spec)
	defer func() { ok(c.t, in.Close()) }()
	return changedOf(c.t, in.Source(0), base)
}

func changedOf(t tester, src volume.Source, base volume.Checkpoint) ([]extent.Range, error) {
	t.Helper()
	var out []extent.Range
	for off := int64(0); ; {
		r, err := src.Changed(t.Context(), base, off)
		if errors.Is(err, io.EOF) {
			return extent.Normalize(out), nil
		}
		if err != nil {
			return nil, err
		}
		if r.Off < off || r.Len <= 0 || r.End() > src.Size() {
			t.Fatalf("changed %v after %d of %d", r, off, src.Size())
		}
		out, off = append(out, r), r.End()
	}
}

// wantChanges demands that exactly these chunks of 64 KiB changed since base;
// none: that nothing is known of changes.
func (c *scene) wantChanges(base volume.Checkpoint, chunks ...int64) {
	c.t.Helper()
	got, err := c.changed(base)
	if len(chunks) == 0 {
		c.wantNoBase(base)
		return
	}
	ok(c.t, err)
	var want []extent.Range
	for _, b := range chunks {
		want = append(want, extent.Range{Off: b << 16, Len: 1 << 16})
	}
	if want = extent.Normalize(want); !slices.Equal(got, want) {
		c.t.Fatalf("changed since %s: %v, want %v", base, got, want)
	}
}

func (c *scene) wantNoBase(base volume.Checkpoint) {
	c.t.Helper()
	if got, err := c.changed(base); !errors.Is(err, volume.ErrNoBase) {
		c.t.Fatalf("changed since %s: %v, %v; want ErrNoBase", base, got, err)
	}
}

// rewrite changes the record as if it had been written so.
func (c *scene) rewrite(change func(*record)) {
	c.t.Helper()
	r, err := c.d.readRecord(c.spec.ID)
	ok(c.t, err)
	change(r)
	ok(c.t, c.d.writeRecord(c.spec.ID, r))
}

func (c *scene) write(chunk int64) { c.disk.put(letter('w', 100), chunk<<16+5) }

func TestTracking(t *testing.T) {
	c := newTracked(t, "cairn-a", "other")
	c.wantNoBase("p1")
	c.write(3)
	c.point("p1")
	c.wantChanges("p1", 3) // marked before the point: more than need be
	c.write(5)
	c.write(100)
	c.wantChanges("p1", 3, 5, 100)
	c.wantNoBase("p0")
	c.wantNoBase("")
	ok(t, freeze(t, c.d, c.spec).Close()) // without Settle nothing is another
	c.wantChanges("p1", 3, 5, 100)
	c.d = newDriver(t, c.d.cfg.Dir)
	c.wantChanges("p1", 3, 5, 100)
	c.point("p2")
	c.wantNoBase("p1")
	c.wantChanges("p2", 3, 5, 100)
	// The owner renews a bitmap that has many marks: both are there at a point.
	c.disk.bitmap("cairn-b")
	c.reserve()
	c.wantChanges("p2", 3, 5, 100) // the new one does not reach back
	c.point("p3")
	c.write(7)
	c.wantChanges("p3", 7) // of two, that which tells the least
	c.disk.unbitmap("cairn-a", "")
	c.reserve()
	c.wantChanges("p3", 7)
	c.point("p4")
	c.wantChanges("p4", 7)
}

// Nobody is believed without the owner's word, and no bitmap but ours.
func TestBitmapsThatMayNotBeBelieved(t *testing.T) {
	for name, tt := range map[string]struct{ bitmap, parameter string }{
		"no trust":     {"cairn-a", ""},
		"another name": {"backup", trusted},
		"a like name":  {"Cairn-a", trusted},
		"no bitmap":    {"", trusted},
	} {
		t.Run(name, func(t *testing.T) {
			var names []string
			if tt.bitmap != "" {
				names = append(names, tt.bitmap)
			}
			c := newTracked(t, names...)
			c.spec = register(t, c.d, "vol-1", c.s.uri("x")+tt.parameter)
			c.point("p1")
			c.write(1)
			c.wantNoBase("p1")
			if left, err := os.ReadDir(c.d.cfg.Dir); err != nil || len(left) > 0 {
				t.Errorf("there are records: %v, %v", left, err)
			}
			in := freeze(t, c.d, c.spec)
			if rs, err := in.Source(0).Audit(t.Context(), "p1"); err != nil || rs != nil {
				t.Errorf("Audit: %v, %v", rs, err)
			}
		})
	}
}

// A bitmap that is not what it was at the base point is not believed, and what
// was known is lost where it may be untrue.
func TestTrackingIsLost(t *testing.T) {
	path := func(c *scene) string { return c.d.recordPath("vol-1") }
	for name, change := range map[string]func(c *scene){
		"cleared": func(c *scene) { c.disk.bitmap("cairn-a") },
		"cleared and marked elsewhere": func(c *scene) {
			c.disk.bitmap("cairn-a")
			for b := range int64(128) {
				if b != 9 {
					c.write(b)
				}
			}
		},
		"cleared and marked in part": func(c *scene) { // chunks 8 to 10 were one mark
			c.disk.bitmap("cairn-a")
			c.write(2)
			c.write(8)
			c.write(10)
			c.write(70)
			c.write(90)
		},
		"taken away": func(c *scene) {
			c.disk.unbitmap("cairn-a", "")
			c.reserve()
		},
		"renamed": func(c *scene) {
			c.disk.unbitmap("cairn-a", "cairn-b")
			c.reserve()
		},
		"grown": func(c *scene) {
			c.disk.resize(9 * mib)
			c.reserve()
		},
		"shrunk": func(c *scene) {
			c.disk.resize(7 * mib)
			c.reserve()
		},
		"opened for writing": func(c *scene) {
			g, err := c.d.OpenTarget(c.t.Context(), c.spec)
			ok(c.t, err)
			ok(c.t, g.Close())
		},
		"trust withdrawn": func(c *scene) { c.spec = register(c.t, c.d, "vol-1", c.s.uri("x")) },
		"another export": func(c *scene) {
			twin := exported("y", c.disk)
			c.s.add(twin, c.disk)
			c.spec = register(c.t, c.d, "vol-1", c.s.uri("y")+trusted)
		},
		"record gone":      func(c *scene) { ok(c.t, os.Remove(path(c))) },
		"record empty":     func(c *scene) { ok(c.t, os.WriteFile(path(c), nil, 0o600)) },
		"record cut":       func(c *scene) { ok(c.t, os.Truncate(path(c), 100)) },
		"record of future": func(c *scene) { c.rewrite(func(r *record) { r.Version = 2 }) },
		"point without bitmap": func(c *scene) {
			c.disk.unbitmap("cairn-a", "")
			c.reserve()
			c.point("p1") // the same content once more
			c.disk.bitmap("cairn-a")
			c.reserve()
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newTracked(t, "cairn-a")
			for _, b := range []int64{2, 8, 9, 10, 70} {
				c.write(b)
			}
			c.point("p1")
			c.wantChanges("p1", 2, 8, 9, 10, 70)
			change(c)
			c.wantNoBase("p1")
			// And it begins anew with the next point, where there is a bitmap.
			c.point("p2")
			if at, err := locate(c.spec); err == nil && at.trust && len(c.disk.allMarks()) > 0 {
				_, err := c.changed("p2")
				ok(t, err)
			}
		})
	}
}

// Every byte of a record counts.
func TestDamagedRecords(t *testing.T) {
	c := newTracked(t, "cairn-a", "cairn-b")
	c.write(3)
	c.point("p1")
	text, err := os.ReadFile(c.d.recordPath("vol-1"))
	ok(t, err)
	if _, err := parseRecord(text); err != nil {
		t.Fatal(err)
	}
	for i := range text {
		damaged := slices.Clone(text)
		damaged[i] ^= 1 << rand.IntN(8)
		if _, err := parseRecord(damaged); err == nil {
			t.Errorf("byte %d may be %q instead of %q", i, damaged[i], text[i])
		}
		if _, err := parseRecord(text[:i]); err == nil {
			t.Errorf("%d bytes of %d are enough", i, len(text))
		}
	}
	for name, change := range map[string]func(*record){
		"no checkpoint":  func(r *record) { r.Checkpoint = "" },
		"no size":        func(r *record) { r.SizeBytes = 0 },
		"negative audit": func(r *record) { r.Audit = -1 },
	} {
		c.rewrite(change)
		if r, err := c.d.readRecord("vol-1"); r != nil || err != nil {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		ok(t, os.WriteFile(c.d.recordPath("vol-1"), text, 0o600))
	}
	c.wantChanges("p1", 3)
}

// When a record cannot be written or read, that is said.
func TestRecordFailures(t *testing.T) {
	c := newTracked(t, "cairn-a")
	in := freeze(t, c.d, c.spec)
	ok(t, os.RemoveAll(c.d.cfg.Dir))
	err := in.Settle(t.Context(), []volume.Checkpoint{"p1"}, committed)
	if errs.KindOf(err) != errs.Internal || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Settle: %v", err)
	}
	if err := in.Settle(t.Context(), nil, committed); errs.KindOf(err) != errs.Internal {
		t.Errorf("Settle of no point: %v", err)
	}
	ok(t, in.Close())
	if _, err := c.d.OpenTarget(t.Context(), c.spec); errs.KindOf(err) != errs.Internal {
		t.Errorf("OpenTarget: %v", err)
	}
	ok(t, os.MkdirAll(c.d.recordPath("vol-1"), 0o700))
	if _, err := c.d.Freeze(t.Context(), "job-1", []volume.Spec{c.spec}, nil); errs.KindOf(err) != errs.Internal {
		t.Errorf("Freeze: %v", err)
	}
}

// A bitmap in so many shreds that only their hash is remembered.
func TestShreddedBitmap(t *testing.T) {
	c := newTracked(t, "cairn-a")
	c.point("p1")
	for b := int64(1); b < 128; b += 3 {
		c.write(b)
	}
	in := freeze(t, c.d, c.spec)
	want, err := changedOf(t, in.Source(0), "p1")
	ok(t, err)
	src := in.Source(0).(*source)
	src.changes.whole, src.changes.edges = false, nil
	got, err := changedOf(t, src, "p1")
	ok(t, err)
	if len(got) != 43 || !slices.Equal(got, want) {
		t.Errorf("changed %v, want %v", got, want)
	}
}

func TestWitnesses(t *testing.T) {
	r := func(off, end int64) extent.Range { return extent.Range{Off: off, Len: end - off} }
	want := []extent.Range{r(2, 4), r(6, 8), r(10, 20)}
	for name, tt := range map[string]struct {
		seen []extent.Range
		lost int
	}{
		"none":          {nil, 3},
		"the same":      {want, 0},
		"all":           {[]extent.Range{r(0, 100)}, 0},
		"wider":         {[]extent.Range{r(1, 4), r(6, 9), r(9, 21)}, 0},
		"joined":        {[]extent.Range{r(2, 8), r(10, 20)}, 0},
		"more":          {[]extent.Range{r(0, 1), r(2, 4), r(5, 9), r(10, 20), r(30, 40)}, 0},
		"one short":     {[]extent.Range{r(2, 4), r(6, 7), r(10, 20)}, 1},
		"one late":      {[]extent.Range{r(2, 4), r(7, 8), r(10, 20)}, 1},
		"one in two":    {[]extent.Range{r(2, 4), r(6, 8), r(10, 12), r(13, 20)}, 1},
		"the first":     {[]extent.Range{r(6, 8), r(10, 20)}, 1},
		"the last":      {[]extent.Range{r(2, 4), r(6, 8)}, 1},
		"all but one":   {[]extent.Range{r(6, 8)}, 2},
		"only between":  {[]extent.Range{r(0, 2), r(4, 6), r(8, 10), r(20, 30)}, 3},
		"only the ends": {[]extent.Range{r(3, 4), r(7, 8), r(19, 20)}, 3},
	} {
		w := witnesses{want: want}
		for _, r := range tt.seen {
			w.seen(r)
		}
		if got := w.missing(); got != tt.lost {
			t.Errorf("%s: %d lost, want %d", name, got, tt.lost)
		}
	}
}

// However many marks there are, the witnesses are few and from everywhere.
func TestThinner(t *testing.T) {
	for _, n := range []int{0, 1, maxWitnesses, maxWitnesses + 1, 10*maxWitnesses + 7, 300_000} {
		var k thinner
		for i := range n {
			k.add(extent.Range{Off: int64(i), Len: 1})
		}
		if len(k.kept) > maxWitnesses || len(k.kept) < min(n, maxWitnesses/2) {
			t.Errorf("of %d, %d are kept", n, len(k.kept))
		}
		widest := int64(2*n/maxWitnesses + 1)
		for i, r := range append(k.kept, extent.Range{Off: int64(n)}) {
			before := int64(-1)
			if i > 0 {
				before = k.kept[i-1].Off
			}
			if r.Off <= before || r.Off-before > widest {
				t.Fatalf("of %d, none between %d and %d is kept", n, before, r.Off)
			}
		}
	}
}
