package engine

import (
	"context"
	"fmt"

	"cairn/internal/extent"
	"cairn/internal/repo"
)

// plan decides what of the source is read, and says so in spec.Meta. Tracking
// is audited before anything is written. If it was wrong all data is read, now
// and whenever the session captures that resource again.
func (s *session) plan(ctx context.Context, spec *CaptureSpec, parent *repo.Root) (plan, Audit, error) {
	scan := plan{src: spec.Source}
	if found, ok := s.untrue[spec.Meta.Resource]; ok {
		spec.distrust(found)
		return scan, found, nil
	}
	p, err := newPlan(ctx, *spec, parent)
	if err != nil || !p.tracked() {
		return p, Audit{}, err
	}
	a := auditor{e: s.e, parent: *parent, plan: p, ids: s.e.r.NewIDs(), changed: cursor{of: p.next, size: p.src.Size()}}
	if err := a.run(ctx); err != nil {
		return plan{}, Audit{}, fmt.Errorf("audit the change tracking of %s: %w", spec.Meta.Resource, err)
	}
	if len(a.found.Wrong) > 0 {
		s.untrue[spec.Meta.Resource] = a.found
		spec.distrust(a.found)
		return scan, a.found, nil
	}
	spec.Meta.CBT = CBTTracked
	return p, a.found, nil
}

// distrust makes the point say that everything was read, and why.
func (c *CaptureSpec) distrust(found Audit) {
	c.Meta.CBT = CBTScan
	if c.Meta.Reason != "" {
		c.Meta.Reason += "; "
	}
	c.Meta.Reason += found.Finding(c.Meta.Resource)
}

// Finding says for people what was wrong with the tracking of a resource; ""
// if nothing was.
func (a Audit) Finding(resource string) string {
	if len(a.Wrong) == 0 {
		return ""
	}
	return fmt.Sprintf("the change tracking of %s was wrong (of %d bytes that it called unchanged and that were compared, %d had changed), so everything was read",
		resource, a.Bytes, extent.Total(a.Wrong))
}

// auditor compares chunks that a source calls unchanged with the parent's.
type auditor struct {
	e       *Engine
	parent  repo.Root
	plan    plan
	ids     *repo.IDs
	changed cursor // what the source calls changed
	buf     []byte
	found   Audit
}

func (a *auditor) run(ctx context.Context) error {
	size := a.plan.src.Size()
	ranges, err := a.plan.src.Audit(ctx, a.plan.base)
	if err != nil {
		return err
	}
	for _, r := range ranges {
		if r.Off < 0 || r.Len < 0 || r.Off > size-r.Len {
			return fmt.Errorf("the driver wants bytes %d to %d compared of a volume of %d", r.Off, r.End(), size)
		}
	}
	for _, r := range extent.Align(ranges, chunkSize, size) {
		for off := r.Off; off < r.End(); {
			n := min(r.End(), (off/leafSize+1)*leafSize) - off
			if err := a.part(ctx, off, n); err != nil {
				return err
			}
			off += n
		}
	}
	a.found.Wrong = extent.Normalize(a.found.Wrong)
	return nil
}

// part compares n bytes at off, which lie in one leaf and begin with a chunk.
func (a *auditor) part(ctx context.Context, off, n int64) error {
	node, err := a.e.r.Leaf(ctx, a.parent, off/leafSize)
	if err != nil {
		return err
	}
	if a.buf == nil {
		a.buf = make([]byte, leafSize)
	}
	if err := a.plan.src.ReadAt(ctx, a.buf[:n], off); err != nil {
		return err
	}
	clear(a.buf[n : (n+chunkSize-1)&^(chunkSize-1)])
	for at := int64(0); at < n; at += chunkSize {
		if err := a.changed.seek(ctx, off+at); err != nil {
			return err
		}
		if !a.changed.eof && a.changed.at.Off <= off+at {
			continue // a change in the same chunk: nothing is said about the rest of it
		}
		var want repo.ID
		if node != nil {
			want = node.Slots[(off+at)%leafSize/chunkSize].ID
		}
		r := extent.Range{Off: off + at, Len: min(chunkSize, n-at)}
		a.found.Bytes += r.Len
		if a.ids.Of(a.buf[at:at+chunkSize]) != want {
			a.found.Wrong = append(a.found.Wrong, r)
		}
	}
	return nil
}
