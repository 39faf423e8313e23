package engine

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"cairn/internal/repo"
)

// HealCopies writes damaged or missing copies anew, each from its whole twin,
// and returns those that it could. Running it twice is harmless.
func (e *Engine) HealCopies(ctx context.Context, blobs []string) (healed []string, err error) {
	for _, name := range blobs {
		err := e.r.HealCopy(ctx, name)
		if err != nil && !repo.IsDamage(err) {
			return healed, fmt.Errorf("heal %s: %w", name, err)
		}
		if err == nil {
			healed = append(healed, name)
		}
	}
	return healed, nil
}

// CompleteCopies writes the copies that a crash left out, of journal blobs and
// of relocations, and returns their names. With its database gone nobody can
// tell half a relocation from one that lost a copy. What is damaged stays for
// scrub to report.
func (e *Engine) CompleteCopies(ctx context.Context) (healed []string, err error) {
	var lacking []string
	blobs, err := e.r.JournalBlobs(ctx)
	if err != nil {
		return nil, err
	}
	for _, b := range blobs {
		lacking = append(lacking, b.Lacks()...)
	}
	lacks, err := e.r.LackingRelocations(ctx)
	if err != nil {
		return nil, err
	}
	return e.HealCopies(ctx, append(lacking, lacks...))
}

// RebuildIndex makes the dedup index anew from the directories of all stored
// data packs. A healed chunk is looked for in it, and an index that was lost or
// is older than the packs would hide one.
func (e *Engine) RebuildIndex(ctx context.Context) error {
	_, err := e.r.RebuildIndex(ctx)
	return err
}

// Verified is what CheckPacks found.
type Verified struct {
	Whole     []string // packs of which every bit was found right
	BytesRead int64
	Damage    []Damage // what was not
}

// CheckPacks reads all copies of the packs afresh and checks every bit. A pack
// that is not there is damage, too.
func (e *Engine) CheckPacks(ctx context.Context, packs []PackRecord) (Verified, error) {
	var out Verified
	results := make([]*packCheck, len(packs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(e.workers)
	for i, p := range packs {
		g.Go(func() error {
			var err error
			results[i], err = e.checkPack(gctx, p)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return out, err
	}
	for i, c := range results {
		out.BytesRead += c.bytes
		if len(c.damage) == 0 {
			out.Whole = append(out.Whole, packs[i].ID)
		}
		out.Damage = append(out.Damage, c.damage...)
	}
	return out, nil
}

type packCheck struct {
	bytes  int64
	damage []Damage
}

func (e *Engine) checkPack(ctx context.Context, rec PackRecord) (*packCheck, error) {
	p, err := rec.repo()
	if err != nil {
		return nil, err
	}
	x, err := e.r.NewReader()
	if err != nil {
		return nil, err
	}
	defer x.Close()
	c := &packCheck{}
	for _, name := range p.Pack.Copies() {
		counts, finding, err := x.CheckBlob(ctx, repo.Blob{Name: name})
		switch {
		case errors.Is(err, repo.ErrGone):
			c.damage = append(c.damage, Damage{Blob: name, What: "the blob is missing"})
		case err != nil:
			return nil, fmt.Errorf("check blob %s: %w", name, err)
		case finding != nil:
			c.damage = append(c.damage, Damage{Blob: name, What: finding.Error()})
		}
		c.bytes += counts.Bytes
	}
	return c, nil
}
