package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"cairn/internal/engine"
	"cairn/internal/extent"
	"cairn/internal/repo"
)

// tracking is what knowing the changes saves.
type tracking struct {
	Full, Second, Nothing time.Duration
	Changed, Data         int64 // bytes in whole chunks that the driver names, and of the volume's data
	NothingBytes          int64 // stored by a point of an unchanged volume
}

// share is the part of the data that changed.
func (t tracking) share() float64 { return float64(t.Changed) / float64(t.Data) }

// limit is what the second point may take.
func (t tracking) limit() time.Duration {
	return time.Duration(1.2*t.share()*float64(t.Full)) + 50*time.Millisecond
}

const trackedRuns = 3

func measureTracking(ctx context.Context, work string, disk *testDisk) (t tracking, err error) {
	return t, inChild(ctx, &t, "tracked", work, disk.days[0], disk.days[1])
}

// trackedChild takes a full of the first day, one point after nothing changed,
// and one of the second day whose changes are known, each in a new repository.
func trackedChild(ctx context.Context, args []string) (any, error) {
	work, days := args[0], args[1:]
	diff, err := differences(ctx, days[0], days[1])
	if err != nil {
		return nil, err
	}
	var runs []tracking
	for range trackedRuns {
		t, err := trackedOnce(ctx, filepath.Join(work, "tracked"), days, diff)
		if err != nil {
			return nil, err
		}
		runs = append(runs, t)
	}
	t := runs[0]
	of := func(value func(tracking) time.Duration) time.Duration {
		var all []time.Duration
		for _, r := range runs {
			all = append(all, value(r))
		}
		return middle(all)
	}
	t.Full = of(func(t tracking) time.Duration { return t.Full })
	t.Second = of(func(t tracking) time.Duration { return t.Second })
	t.Nothing = of(func(t tracking) time.Duration { return t.Nothing })
	return t, nil
}

func trackedOnce(ctx context.Context, dir string, days []string, diff []extent.Range) (t tracking, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r, err := newEngineRig(ctx, dir)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	var sources [2]*fileSource
	for i, day := range days {
		if err := settle(dir, day); err != nil {
			return t, err
		}
		if sources[i], err = openSource(day); err != nil {
			return t, err
		}
		defer sources[i].f.Close()
	}
	full, took, err := r.take(ctx, sources[0], nil)
	if err != nil {
		return t, err
	}
	t.Full, t.Data = took, full.ReadBytes
	same, took, err := r.take(ctx, sources[0], &full.Ref)
	if err != nil {
		return t, err
	}
	t.Nothing, t.NothingBytes = took, same.AddedBytes
	sources[1].changed = extent.Align(slices.Clone(diff), repo.ChunkSize, sources[1].size)
	t.Changed = extent.Total(sources[1].changed)
	second, took, err := r.take(ctx, sources[1], &same.Ref)
	if err != nil {
		return t, err
	}
	if second.CBT != engine.CBTTracked || second.ReadBytes > t.Changed {
		return t, fmt.Errorf("%d bytes of %d that changed were read, found by %s", second.ReadBytes, t.Changed, second.CBT)
	}
	t.Second = took
	if _, err := r.restore(ctx, second.Ref, sources[1].size); err != nil {
		return t, err
	}
	return t, mustEqual(ctx, filepath.Join(dir, "volumes", "vol-RESTORED.raw"), days[1])
}

// middle is the median; of two middle ones the smaller.
func middle(all []time.Duration) time.Duration {
	all = slices.Sorted(slices.Values(all))
	return all[(len(all)-1)/2]
}

// chain is a chain of increments.
type chain struct {
	Points       int
	Pairs        int           // of an early and a late increment
	PageBytes    int64         // rewritten before each point
	Early, Late  time.Duration // the tenth, and the last: medians of the pairs
	RestoreEarly time.Duration // of the tenth
	RestoreLate  time.Duration // of the last
}

const (
	chainPoints  = 1000
	chainSize    = 1 << 30
	chainPages   = 64
	chainEarly   = 10 // the early point
	chainPairs   = 21 // early and late increments, the tenth and the last in their middle
	chainRepeats = 9  // of each restore; odd, so that the last point is restored last and compared
)

func measureChain(ctx context.Context, work string, disk *testDisk) (c chain, err error) {
	return c, inChild(ctx, &c, "chain", work, disk.days[0])
}

// link is a chain that grows.
type link struct {
	*engineRig
	last engine.PointRef
}

func newLink(ctx context.Context, dir string, src *fileSource) (*link, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	r, err := newEngineRig(ctx, dir)
	if err != nil {
		return nil, err
	}
	l := &link{engineRig: r}
	_, err = l.grow(ctx, src)
	return l, err
}

// grow takes a full, or an increment of what was rewritten since.
func (l *link) grow(ctx context.Context, src *fileSource) (time.Duration, error) {
	var parent *engine.PointRef
	if l.last.Snapshot != "" {
		parent = &l.last
	}
	c, took, err := l.take(ctx, src, parent)
	l.last = c.Ref
	return took, err
}

// chainChild takes a thousand increments of a volume of which a few pages are
// rewritten each time, and beside the last of them the first ones of another
// chain: the disk's moods are then the same for both.
func chainChild(ctx context.Context, args []string) (_ any, err error) {
	dir := filepath.Join(args[0], "chain")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	src, err := chainVolume(filepath.Join(dir, "volume.raw"), args[1])
	if err != nil {
		return nil, err
	}
	defer src.f.Close()
	long, err := newLink(ctx, filepath.Join(dir, "long"), src)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, long.close()) }()
	rng := rand.New(rand.NewPCG(1, 1))
	var early engine.PointRef
	for n := 1; n < chainPoints-chainPairs/2; n++ {
		if err := src.rewrite(rng); err != nil {
			return nil, err
		}
		if _, err = long.grow(ctx, src); err != nil {
			return nil, err
		}
		if n == chainEarly {
			early = long.last
		}
	}
	c := chain{Points: chainPoints, Pairs: chainPairs, PageBytes: chainPages * 4096}
	if err := growInTurns(ctx, &c, filepath.Join(dir, "short"), src, rng, long); err != nil {
		return nil, err
	}
	if err := long.restoreInTurns(ctx, &c, early, long.last, src.size); err != nil {
		return nil, err
	}
	return c, mustEqual(ctx, filepath.Join(long.dir, "volumes", "vol-RESTORED.raw"), src.f.Name())
}

// growInTurns takes the last increments of the long chain and the first ones
// of a new one, by turns.
func growInTurns(ctx context.Context, c *chain, dir string, src *fileSource, rng *rand.Rand, long *link) (err error) {
	short, err := newLink(ctx, dir, src)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, short.close()) }()
	links := []*link{short, long}
	var took [2][]time.Duration
	for n := range chainPairs {
		if err := src.rewrite(rng); err != nil {
			return err
		}
		for k := range links {
			i := (n + k) % 2
			t, err := links[i].grow(ctx, src)
			if err != nil {
				return err
			}
			took[i] = append(took[i], t)
		}
	}
	c.Early, c.Late = middle(took[0]), middle(took[1])
	return nil
}

// restoreInTurns restores an early point and the last one, by turns, each first in every other.
func (r *engineRig) restoreInTurns(ctx context.Context, c *chain, early, last engine.PointRef, size int64) error {
	var took [2][]time.Duration
	refs := []engine.PointRef{early, last}
	for n := range chainRepeats {
		for k := range refs {
			i := (n + k) % 2
			if err := touchMemory(touched); err != nil {
				return err
			}
			t, err := r.restore(ctx, refs[i], size)
			if err != nil {
				return err
			}
			took[i] = append(took[i], t)
		}
	}
	c.RestoreEarly, c.RestoreLate = middle(took[0]), middle(took[1])
	return nil
}

// chainVolume makes a volume of a disk's first data. Chunks of zeros are left
// out: rewriting would make data of them, so that later points hold more.
func chainVolume(path, disk string) (*fileSource, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	at := int64(0)
	err = readData(disk, func(p []byte) {
		for chunk := range slices.Chunk(p, repo.ChunkSize) {
			if err == nil && at < chainSize && !repo.AllZero(chunk) {
				_, err = f.WriteAt(chunk, at)
				at += repo.ChunkSize
			}
		}
	})
	if err := errors.Join(err, f.Close(), os.Truncate(path, chainSize)); err != nil {
		return nil, err
	}
	return openSource(path)
}

// rewrite writes some pages anew and notes it.
func (s *fileSource) rewrite(rng *rand.Rand) error {
	s.changed = s.changed[:0]
	page := make([]byte, 4096)
	for range chainPages {
		for i := range page[:1024] { // what compresses like text
			page[i] = "abcdefghijklmnop"[rng.IntN(16)]
		}
		off := rng.Int64N(s.size/4096) * 4096
		if _, err := s.f.WriteAt(page, off); err != nil {
			return err
		}
		s.changed = append(s.changed, extent.Range{Off: off, Len: 4096})
	}
	s.changed = extent.Align(s.changed, repo.ChunkSize, s.size)
	return nil
}
