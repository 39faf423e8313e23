package nbdvolume

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cairn/internal/extent"
	"cairn/internal/volume"
)

// machine plays the life of a volume whose owner allows bitmaps to be believed
// (or does not) beside slices of bytes: other clients write, the owner clears,
// removes and makes bitmaps and resizes the export, points are taken, settled
// or given up, the volume is overwritten, the driver starts anew and its
// record is damaged.
type machine struct {
	t     *testing.T
	c     *scene
	trust bool

	points int
	bases  []base
	lost   bool // the record is gone since the last settled point
}

// base is what a settled point showed.
type base struct {
	name    volume.Checkpoint
	content []byte
	marks   map[string]map[int64]bool
	// broken bitmaps missed something since: they were cleared, cut, or away.
	broken map[string]bool
}

var bitmapNames = []string{"cairn-a", "cairn-b", "other"}

var sizes = []int64{252 << 10, 256 << 10, 260 << 10, 512 << 10}

// Following Changed from a point gives exactly the present bytes, whenever it
// does not say ErrNoBase, with one exception: where the owner broke the word
// that was given for trust in a way that no mark tells.
func TestTrackingModel(t *testing.T) {
	s := serve(t)
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		m := &machine{t: t, trust: rapid.IntRange(0, 3).Draw(rt, "trust") > 0}
		export := fmt.Sprint("x", n)
		disk := newDisk(rapid.SampledFrom(sizes).Draw(rt, "size"))
		m.c = &scene{t: t, s: s, disk: disk, d: newDriver(t, t.TempDir())}
		for _, name := range bitmapNames {
			if rapid.Bool().Draw(rt, name) {
				disk.bitmap(name)
			}
		}
		m.c.cfg = exported(export, disk)
		m.c.exp = s.add(m.c.cfg, disk)
		uri := s.uri(export)
		if m.trust {
			uri += trusted
		}
		m.c.spec = register(t, m.c.d, "vol-1", uri)
		rt.Repeat(map[string]func(*rapid.T){
			"write":   m.write,
			"write 2": m.write,
			"punch":   m.punch,
			"clear":   m.clear,
			"bitmap":  m.bitmap,
			"resize":  m.resize,
			"target":  m.target,
			"restart": m.restart,
			"damage":  m.damage,
			"give up": func(rt *rapid.T) { m.capture(rt, false) },
			"point":   func(rt *rapid.T) { m.capture(rt, true) },
			"point 2": func(rt *rapid.T) { m.capture(rt, true) },
		})
		ok(t, m.c.exp.Remove(t.Context()))
	})
}

func (m *machine) span(rt *rapid.T) (off, length int64) {
	size := m.c.disk.size()
	off = rapid.Int64Range(0, size-1).Draw(rt, "off")
	return off, min(rapid.Int64Range(1, 100<<10).Draw(rt, "length"), size-off)
}

func (m *machine) write(rt *rapid.T) {
	off, length := m.span(rt)
	m.c.disk.put(letter(rapid.Byte().Draw(rt, "fill"), int(length)), off)
}

func (m *machine) punch(rt *rapid.T) {
	off, length := m.span(rt)
	m.c.disk.punch(off, length)
}

// breaks notes that bitmaps no longer tell all since the points so far.
func (m *machine) breaks(names ...string) {
	for _, b := range m.bases {
		for _, name := range names {
			b.broken[bitmaps+name] = true
		}
	}
}

func (m *machine) clear(rt *rapid.T) {
	name := rapid.SampledFrom(bitmapNames).Draw(rt, "name")
	if m.c.disk.has(name) {
		m.c.disk.bitmap(name)
		m.breaks(name)
	}
}

// bitmap removes a bitmap, or makes one that was not there.
func (m *machine) bitmap(rt *rapid.T) {
	name := rapid.SampledFrom(bitmapNames).Draw(rt, "name")
	if m.c.disk.has(name) {
		m.c.disk.unbitmap(name, "")
	} else {
		m.c.disk.bitmap(name)
	}
	m.breaks(name)
	m.c.reserve()
}

func (m *machine) resize(rt *rapid.T) {
	was := m.c.disk.size()
	size := rapid.SampledFrom(sizes).Draw(rt, "size")
	m.c.disk.resize(size)
	if size < was {
		m.breaks(bitmapNames...)
	}
	m.c.reserve()
}

// target is a rollback or an apply: it writes through the driver.
func (m *machine) target(rt *rapid.T) {
	g, err := m.c.d.OpenTarget(rt.Context(), m.c.spec)
	ok(rt, err)
	m.lost = true
	want := m.c.disk.bytes()
	for range rapid.IntRange(0, 3).Draw(rt, "writes") {
		off, length := m.span(rt)
		if rapid.Bool().Draw(rt, "zero") {
			ok(rt, g.Zero(rt.Context(), off, length))
			clear(want[off : off+length])
			continue
		}
		fill := letter(rapid.Byte().Draw(rt, "fill"), int(length))
		ok(rt, g.WriteAt(rt.Context(), fill, off))
		copy(want[off:], fill)
	}
	ok(rt, g.Sync(rt.Context()))
	ok(rt, g.Close())
	if !bytes.Equal(m.c.disk.bytes(), want) {
		rt.Fatal("the disk is not what was written")
	}
}

func (m *machine) restart(*rapid.T) { m.c.d = newDriver(m.t, m.c.d.cfg.Dir) }

func (m *machine) damage(rt *rapid.T) {
	path := m.c.d.recordPath("vol-1")
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return
	}
	ok(rt, err)
	m.lost = true
	if len(text) == 0 {
		return // it was cut before
	}
	at := rapid.IntRange(0, len(text)-1).Draw(rt, "at")
	switch rapid.SampledFrom([]string{"flip", "cut", "remove"}).Draw(rt, "how") {
	case "flip":
		text[at] ^= 1 << rapid.IntRange(0, 7).Draw(rt, "bit")
		ok(rt, os.WriteFile(path, text, 0o600))
	case "cut":
		ok(rt, os.WriteFile(path, text[:at], 0o600))
	default:
		ok(rt, os.Remove(path))
	}
}

// capture takes a point against every earlier one, and settles it or not.
func (m *machine) capture(rt *rapid.T, settle bool) {
	ctx := rt.Context()
	in, err := m.c.d.Freeze(ctx, "job-1", []volume.Spec{m.c.spec}, nil)
	ok(rt, err)
	defer func() { ok(rt, in.Close()) }()
	now := m.present()
	if got := contentOf(rt, in.Source(0)); !bytes.Equal(got, now.content) {
		rt.Fatal("the source is not the disk")
	}
	for i, b := range m.bases {
		m.follow(rt, in.Source(0), b, now, i == len(m.bases)-1)
	}
	ok(rt, in.Check(ctx))
	if !settle {
		return
	}
	m.bases = append(m.bases[max(0, len(m.bases)-2):], now)
	// What happens from the instant on counts as after the point.
	if rapid.Bool().Draw(rt, "write before Settle") {
		m.write(rt)
	}
	if rapid.IntRange(0, 9).Draw(rt, "clear before Settle") == 0 {
		m.clear(rt)
	}
	ok(rt, in.Settle(ctx, []volume.Checkpoint{now.name}, committed))
	m.lost = false
}

func (m *machine) present() base {
	m.points++
	return base{
		name: volume.Checkpoint(fmt.Sprint("p", m.points)), content: m.c.disk.bytes(),
		marks: m.c.disk.allMarks(), broken: map[string]bool{},
	}
}

// follow demands that what changed since b leads to now.
func (m *machine) follow(rt *rapid.T, src volume.Source, b, now base, last bool) {
	sound, untold := m.ways(b, now)
	may := last && m.trust && !m.lost && len(b.content) == len(now.content)
	changed, err := changedOf(rt, src, b.name)
	if err != nil {
		if !errors.Is(err, volume.ErrNoBase) {
			rt.Fatal(err)
		}
		if may && sound {
			rt.Fatalf("nothing is known since %s, though a bitmap tells", b.name)
		}
		return
	}
	if !may || !sound && !untold {
		rt.Fatalf("changes since %s are told, though no bitmap can", b.name)
	}
	audit, err := src.Audit(rt.Context(), b.name)
	ok(rt, err)
	got := bytes.Clone(b.content)
	for _, r := range changed {
		copy(got[r.Off:r.End()], now.content[r.Off:r.End()])
	}
	wrong := !bytes.Equal(got, now.content)
	for _, r := range audit {
		if len(without([]extent.Range{r}, changed)) == 0 {
			rt.Fatalf("the audit looks at %v, which changed", r)
		}
		wrong = wrong || !bytes.Equal(b.content[r.Off:r.End()], now.content[r.Off:r.End()])
	}
	if wrong && !untold {
		rt.Fatalf("what is told since %s does not lead to what is there", b.name)
	}
}

// ways are in what ways changes since b can be told: by a bitmap that missed
// nothing, or by one that missed something and still has all its marks of then.
func (m *machine) ways(b, now base) (sound, untold bool) {
	for name, then := range b.marks {
		marks, there := now.marks[name]
		if !there || !strings.HasPrefix(name, believable) {
			continue
		}
		kept := true
		for mark := range then {
			kept = kept && marks[mark]
		}
		sound = sound || !b.broken[name]
		untold = untold || b.broken[name] && kept
	}
	return sound, untold
}
