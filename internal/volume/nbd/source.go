package nbdvolume

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

// believable begins the names of bitmaps that may be believed, if the owner
// allows it: others may be somebody else's, who clears them at will.
const believable = bitmaps + "cairn-"

// source is one volume of an instant.
type source struct {
	conn   *conn
	size   int64
	before *look // when the instant began
	data   *nbd.StatusMap

	since   volume.Checkpoint // changes since are known; "": none are
	changes layout            // where they are
	dirty   *nbd.StatusMap    // tells where, if the layout is not whole

	audit int64        // where this point's audit begins
	next  atomic.Int64 // and the next one's
}

var _ volume.Source = (*source)(nil)

// openSource claims a volume, connects and looks at it.
func (d *Driver) openSource(ctx context.Context, spec volume.Spec) (*source, error) {
	p, err := locate(spec)
	if err != nil {
		return nil, err
	}
	if err := d.claim(ctx, p); err != nil {
		return nil, err
	}
	k, err := d.connect(ctx, p, baseAllocation, bitmaps)
	if err != nil {
		d.unclaim(p)
		return nil, err
	}
	s := &source{conn: k}
	if err := s.look(ctx); err != nil {
		err = errors.Join(err, k.close())
		d.unclaim(p)
		return nil, err
	}
	if !k.readOnly() {
		d.log.Warn("the NBD export of a volume takes writes, and NBD cannot hold it still; what is written while it is read fails the point if it is noticed",
			"volume", p.id)
	}
	return s, nil
}

func (s *source) look(ctx context.Context) error {
	r := &record{}
	if s.conn.p.trust {
		known, err := s.conn.d.readRecord(s.conn.p.id)
		if err != nil {
			return err
		}
		if known != nil && known.Identity == s.conn.p.identity() && known.SizeBytes == s.conn.size() {
			r = known
		}
	}
	var err error
	if s.before, err = s.conn.lookAt(ctx, r.Bitmaps); err != nil {
		return err
	}
	s.size = s.before.size
	s.data = s.conn.allocation(s.size, sourceWindow)
	s.audit = r.Audit
	s.next.Store(r.Audit)
	s.track(r)
	return nil
}

// track finds the bitmap that tells the least of what changed since the last
// point, of those that are what they were then: their marks are all there.
func (s *source) track(r *record) {
	best := ""
	for _, b := range r.Bitmaps {
		now, ok := s.before.marks[b.Context]
		if !ok || !strings.HasPrefix(b.Context, believable) {
			continue
		}
		if now.lost > 0 || now.bytes < b.DirtyBytes {
			s.conn.d.log.Warn("a dirty bitmap lost marks since the last point: it was cleared or made anew and is not believed", "volume", s.conn.p.id, "bitmap", b.Context)
			continue
		}
		if best == "" || now.bytes < s.before.marks[best].bytes {
			best = b.Context
		}
	}
	if best != "" {
		s.since, s.changes = r.Checkpoint, s.before.marks[best].layout
		s.dirty = s.conn.bitmap(best, s.size)
	}
}

func (s *source) Size() int64 { return s.size }

// inside refuses ranges that no caller may ask for.
func inside(id string, size, off, length int64) error {
	if off < 0 || length < 0 || off > size-length {
		return errs.New(errs.Internal, "volume %s: range %d+%d is outside its %d bytes", id, off, length, size)
	}
	return nil
}

func (s *source) ReadAt(ctx context.Context, buf []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := inside(s.conn.p.id, s.size, off, int64(len(buf))); err != nil {
		return err
	}
	return s.conn.read(ctx, buf, off)
}

// Release does nothing: the server keeps its instant, or Check finds that it
// did not.
func (s *source) Release(context.Context, int64, int64) error { return nil }

// Data is what the server told when the instant began, where it is known
// whole: what it says later is compared with that in Check.
func (s *source) Data(ctx context.Context, off int64) (extent.Range, error) {
	if err := s.may(ctx, off); err != nil {
		return extent.Range{}, err
	}
	if s.before.data.whole {
		return s.before.data.next(off)
	}
	return s.data.Next(ctx, off, nbd.HoldsData)
}

// may refuses a question about what lies at off, with io.EOF behind the end.
func (s *source) may(ctx context.Context, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if off >= s.size {
		return io.EOF
	}
	return inside(s.conn.p.id, s.size, off, 0)
}

// Changed is the marks of one bitmap, all since it was made.
func (s *source) Changed(ctx context.Context, base volume.Checkpoint, off int64) (extent.Range, error) {
	if base == "" || s.since != base {
		return extent.Range{}, volume.ErrNoBase
	}
	if err := s.may(ctx, off); err != nil {
		return extent.Range{}, err
	}
	return s.marked(ctx, off)
}

// marked is the first change at or after off, or io.EOF.
func (s *source) marked(ctx context.Context, off int64) (extent.Range, error) {
	if s.changes.whole {
		return s.changes.next(off)
	}
	return s.dirty.Next(ctx, off, nbd.IsDirty)
}

const (
	// auditRuns points look at all data that tracking calls unchanged, unless it
	// is so much that one of them would have to look at more than auditMost.
	auditRuns = 256
	auditMost = 256 << 20
	auditLess = 4 << 20
)

// auditBytes is how much one point looks at of a volume with data bytes of data.
func auditBytes(data int64) int64 {
	return min(max(auditLess, (data+auditRuns-1)/auditRuns), auditMost)
}

// Audit goes round the volume's unmarked data: what one point looks at begins
// where the last one ended.
func (s *source) Audit(ctx context.Context, base volume.Checkpoint) ([]extent.Range, error) {
	if base == "" || s.since != base {
		return nil, nil
	}
	start := min(s.audit, s.size)
	out, off, budget, err := s.auditFrom(ctx, nil, start, s.size, auditBytes(s.before.data.bytes))
	if err == nil && budget > 0 {
		out, off, _, err = s.auditFrom(ctx, out, 0, start, budget)
	}
	if err != nil {
		return nil, err
	}
	s.next.Store(off)
	return extent.Normalize(out), nil
}

// auditFrom adds unmarked data of [off, end) as far as the budget goes, and
// returns where it stopped.
func (s *source) auditFrom(ctx context.Context, out []extent.Range, off, end, budget int64) ([]extent.Range, int64, int64, error) {
	for off < end && budget > 0 {
		r, err := s.Data(ctx, off)
		if errors.Is(err, io.EOF) {
			return out, end, budget, nil
		}
		if err != nil {
			return out, off, budget, err
		}
		if off = r.Off; off >= end {
			break
		}
		clean := min(r.End(), end)
		mark, err := s.marked(ctx, off)
		switch {
		case errors.Is(err, io.EOF):
		case err != nil:
			return out, off, budget, err
		case mark.Off <= off:
			off = mark.End()
			continue
		default:
			clean = min(clean, mark.Off)
		}
		n := min(clean-off, budget)
		out = append(out, extent.Range{Off: off, Len: n})
		off, budget = off+n, budget-n
	}
	return out, min(off, end), budget, nil
}

// check fails if anything shows that the volume is not what it was.
func (s *source) check(ctx context.Context) error {
	if err := s.conn.again(ctx); err != nil {
		return err
	}
	what, err := s.before.differs(ctx, s.conn)
	if err != nil {
		return err
	}
	if what != "" {
		return changed(s.conn.p.id, what+"; stop what writes to it, or serve a copy that stays as it is, and try again")
	}
	return nil
}

// settle writes down what the next point can build on.
func (s *source) settle(c volume.Checkpoint) error {
	d, p := s.conn.d, s.conn.p
	if !p.trust {
		return nil
	}
	r := record{Version: recordVersion, Identity: p.identity(), SizeBytes: s.size, Checkpoint: c, Audit: s.next.Load()}
	for _, name := range slices.Sorted(maps.Keys(s.before.marks)) {
		if strings.HasPrefix(name, believable) {
			m := s.before.marks[name]
			r.Bitmaps = append(r.Bitmaps, bitmapRecord{Context: name, DirtyBytes: m.bytes, Witnesses: m.witnesses})
		}
	}
	if len(r.Bitmaps) == 0 {
		return d.dropRecord(p.id)
	}
	return d.writeRecord(p.id, &r)
}
