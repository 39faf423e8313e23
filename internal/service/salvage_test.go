package service_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"cairn/internal/errs"
	"cairn/internal/service"
)

// A point that a scrub found damaged is exported only as a salvage, which says
// what is lost and holds the point like an export does.
func TestSalvage(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		ctx := context.Background()
		ids := prepareChain(p)
		p.mover.damaged[ids[2]] = true
		j, err := p.Scrub(ctx, origin, service.ScrubOptions{})
		p.bad("found 1 damaged", j, err)
		_, err = p.ExportSnapshot(ctx, zone, ids[2])
		refused(t, errs.Conflict, "salvage", err)
		for i, lost := range map[int]int64{2: 1, 3: 0} {
			s, err := p.SalvageSnapshot(ctx, zone, ids[i])
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.delete(ids[i])
			refused(t, errs.Busy, "being exported", err)
			var b bytes.Buffer
			left, err := s.WriteTo(ctx, &b)
			if err := errors.Join(err, s.Close(), s.Close()); err != nil || left.BadBytes() != lost || int64(b.Len()) != s.SizeBytes() {
				t.Errorf("%s: %d bytes, %+v, %v", ids[i], b.Len(), left, err)
			}
		}
		_, err = p.SalvageSnapshot(ctx, zone, "ss-NOTTHERE")
		refused(t, errs.NotFound, "does not exist", err)
		p.good(p.delete(ids[2]))
		_, err = p.SalvageSnapshot(ctx, zone, ids[2])
		refused(t, errs.Conflict, "this needs an available one", err)
	})
}
