package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"cairn/internal/repo"
)

// scrubWorkers bounds the packs that are in memory at once, 33 MiB each.
const scrubWorkers = 3

// damageListed bounds the findings that a report lists one by one.
const damageListed = 1000

// cleanCap bounds what a scrub remembers of whole subtrees, about 100 bytes
// each. Forgetting costs time only.
const cleanCap = 256 << 10

// scrub is one run of Engine.Scrub.
type scrub struct {
	e      *Engine
	report ScrubReport
	bad    map[repo.PackID]bool // packs whose every copy has damage somewhere
	good   map[repo.PackID]bool // packs with at least one whole copy
	broken map[string]bool      // points
	clean  map[place]bool       // subtrees without damage; at most cleanCap
	lost   []string             // blobs that are damaged or missing
	heads  bool                 // a header blob is whole
	used   map[repo.PackID]bool // packs that the points need; nil: nobody asks
}

func (s *scrub) use(p repo.Pack) {
	if s.used != nil {
		s.used[p.ID] = true
	}
}

// Scrub reads every blob afresh and checks every bit of it, then walks every
// listed point down to the chunks and checks that each is where its tree says.
// Damage in one of two copies is reported too. It changes nothing. err says
// that it could not be told whether the repository is whole.
func (e *Engine) Scrub(ctx context.Context, points []PointRef, packs []PackRecord, progress Progress) (ScrubReport, error) {
	s := &scrub{e: e, bad: make(map[repo.PackID]bool), good: make(map[repo.PackID]bool), broken: make(map[string]bool), clean: make(map[place]bool)}
	blobs, total, err := s.list(ctx)
	if err != nil {
		return s.report, err
	}
	if err := s.blobs(ctx, blobs, total, progress); err != nil {
		return s.report, err
	}
	if err := s.missing(ctx, packs); err != nil {
		return s.report, err
	}
	if err := s.journal(ctx); err != nil {
		return s.report, err
	}
	for id := range s.good {
		delete(s.bad, id)
	}
	for id := range s.bad {
		s.report.BadPacks = append(s.report.BadPacks, id.String())
	}
	slices.Sort(s.report.BadPacks)
	s.report.LostCopies = s.healable()
	k := e.r.NewChecker()
	for _, p := range points {
		if err := s.point(ctx, k, p); err != nil {
			return s.report, fmt.Errorf("scrub %s: %w", p.Snapshot, err)
		}
		s.report.Points++
	}
	for id := range s.broken {
		s.report.DamagedPoint = append(s.report.DamagedPoint, id)
	}
	slices.Sort(s.report.DamagedPoint)
	return s.report, nil
}

func (s *scrub) add(d Damage) {
	if d.Snapshot != "" {
		s.broken[d.Snapshot] = true
	}
	if len(s.report.Damage) < damageListed {
		s.report.Damage = append(s.report.Damage, d)
	} else {
		s.report.DamageCut++
	}
}

func (s *scrub) list(ctx context.Context) (blobs []repo.Blob, total int64, err error) {
	err = s.e.r.Blobs(ctx, func(i repo.Blob) error {
		blobs = append(blobs, i)
		total += i.Size
		return nil
	})
	slices.SortFunc(blobs, func(a, b repo.Blob) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return blobs, total, err
}

// checked is one blob's outcome.
type checked struct {
	info    repo.Blob
	counts  repo.Counts
	finding error
	gone    bool
}

// blobs checks all blobs, some at once, and takes the outcomes in order.
func (s *scrub) blobs(ctx context.Context, blobs []repo.Blob, total int64, progress Progress) error {
	g, ctx := errgroup.WithContext(ctx)
	todo, done := make(chan repo.Blob), make(chan checked)
	g.Go(func() error {
		defer close(todo)
		for _, b := range blobs {
			select {
			case todo <- b:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	workers, wctx := errgroup.WithContext(ctx)
	for range min(s.e.workers, scrubWorkers) {
		workers.Go(func() error { return s.checkBlobs(wctx, todo, done) })
	}
	g.Go(func() error {
		defer close(done)
		return workers.Wait()
	})
	for c := range done {
		s.take(c)
		if progress != nil {
			progress(s.report.BytesRead, total)
		}
	}
	return g.Wait()
}

func (s *scrub) checkBlobs(ctx context.Context, todo <-chan repo.Blob, done chan<- checked) error {
	x, err := s.e.r.NewReader()
	if err != nil {
		return err
	}
	defer x.Close()
	for b := range todo {
		c := checked{info: b}
		c.counts, c.finding, err = x.CheckBlob(ctx, b)
		if c.gone = errors.Is(err, repo.ErrGone); err != nil && !c.gone {
			return fmt.Errorf("check blob %s: %w", b.Name, err)
		}
		select {
		case done <- c:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (s *scrub) take(c checked) {
	s.report.BytesRead += c.info.Size
	if c.gone {
		return
	}
	s.report.Blobs++
	s.report.Chunks += c.counts.Chunks
	s.report.Nodes += c.counts.Nodes
	p, header, ok := repo.ParseBlob(c.info.Name)
	if c.finding != nil {
		s.add(Damage{Blob: c.info.Name, What: c.finding.Error()})
		s.lost = append(s.lost, c.info.Name)
	}
	s.heads = s.heads || header && c.finding == nil
	switch {
	case header || !ok || p.Kind == repo.JournalKind:
	case c.finding != nil:
		s.bad[p.ID] = true
	default:
		s.good[p.ID] = true
	}
}

// missing finds blobs that the database knows and the store does not have.
func (s *scrub) missing(ctx context.Context, packs []PackRecord) error {
	for _, rec := range packs {
		p, err := rec.repo()
		if err != nil {
			return err
		}
		lacks, err := s.e.r.Lacks(ctx, p.Pack)
		if err != nil {
			return err
		}
		for _, name := range lacks {
			s.add(Damage{Blob: name, What: "the blob is missing"})
			s.lost = append(s.lost, name)
		}
		if len(lacks) > 0 && !s.good[p.Pack.ID] {
			s.bad[p.Pack.ID] = true
		}
	}
	return nil
}

// healable are the lost blobs of which another copy is whole.
func (s *scrub) healable() []string {
	var out []string
	for _, name := range s.lost {
		p, header, ok := repo.ParseBlob(name)
		if ok && (header && s.heads || !header && s.good[p.ID]) {
			out = append(out, name)
		}
	}
	return out
}

// point walks one point's tree, if need be from what is left of its manifest.
func (s *scrub) point(ctx context.Context, k *repo.Checker, ref PointRef) error {
	m, err := s.e.manifest(ctx, ref)
	if repo.IsDamage(err) {
		s.add(Damage{Snapshot: ref.Snapshot, What: "its manifest cannot be read: " + err.Error()})
		if m, err = s.e.salvageManifest(ctx, ref); repo.IsDamage(err) {
			return nil // so nothing is known of its tree
		}
	}
	if err != nil {
		return err
	}
	_, err = s.node(ctx, k, m, m.Root.Ref, m.Root.Level, 0)
	return err
}

// place names a subtree that was found whole, with where its node lies: the
// same content may lie elsewhere too, and that is another thing to check.
type place struct {
	id   repo.ID
	pack repo.PackID
	off  uint32
}

// node checks the subtree of the node idx of a level, unless it was found
// whole below another point. clean: nothing wrong below it.
func (s *scrub) node(ctx context.Context, k *repo.Checker, m *repo.Manifest, ref repo.Ref, level uint8, idx int64) (clean bool, err error) {
	here := place{ref.ID, ref.Loc.Pack.ID, ref.Loc.Off}
	if ref.IsZero() || s.clean[here] {
		return true, nil
	}
	s.use(ref.Loc.Pack)
	n, err := k.LoadNode(ctx, ref, level)
	if err != nil {
		if !repo.IsDamage(err) {
			return false, err
		}
		span := repo.Span(level)
		off := idx * span * chunkSize
		s.add(Damage{Snapshot: m.Snapshot, Offset: off, Length: min(span*chunkSize, m.SizeBytes-off),
			What: "a node of its tree cannot be read: " + err.Error()})
		return false, nil
	}
	clean = true
	for i := range n.Slots {
		var ok bool
		if level == 0 {
			ok, err = s.slot(ctx, k, m, n.Slots[i], idx*fanout+int64(i))
		} else {
			ok, err = s.node(ctx, k, m, n.Slots[i], level-1, idx*fanout+int64(i))
		}
		if err != nil {
			return false, err
		}
		clean = clean && ok
	}
	if clean {
		if len(s.clean) >= cleanCap {
			clear(s.clean)
		}
		s.clean[here] = true
	}
	return clean, nil
}

// slot checks that a chunk is where the tree says, and that it can be read.
func (s *scrub) slot(ctx context.Context, k *repo.Checker, m *repo.Manifest, ref repo.Ref, idx int64) (clean bool, err error) {
	if ref.IsZero() {
		return true, nil
	}
	at, finding, err := k.Slot(ctx, ref)
	s.use(ref.Loc.Pack)
	s.use(at.Pack)
	if err == nil && (finding != nil || s.bad[at.Pack.ID]) {
		// Something in every copy is damaged, the directory perhaps, which
		// reading does not need: is it this chunk?
		finding, err = s.chunk(ctx, ref)
	}
	if err != nil || finding == nil {
		return err == nil, err
	}
	off := idx * chunkSize
	s.add(Damage{Snapshot: m.Snapshot, Offset: off, Length: min(chunkSize, m.SizeBytes-off),
		Blob: at.Pack.Blob(), What: "a chunk cannot be read: " + finding.Error()})
	return false, nil
}

func (s *scrub) chunk(ctx context.Context, ref repo.Ref) (finding, err error) {
	x, err := s.e.r.NewReader()
	if err != nil {
		return nil, err
	}
	defer x.Close()
	if _, err := x.Chunk(ctx, ref); err != nil {
		if repo.IsDamage(err) {
			return err, nil
		}
		return nil, err
	}
	return nil, nil
}
