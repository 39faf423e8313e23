package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/internal/blobstore/file"
	"cairn/internal/repo"
	"cairn/internal/repo/index"
)

// big is what a repository with very many chunks and a very large volume take.
type big struct {
	Entries int64
	Open    time.Duration // of the repository and its index
	Size    int64         // of the volume
	Extents int
	Steps   []bigStep
}

type bigStep struct {
	Name string
	Wall time.Duration
	Anon int64 // peak of anonymous memory, server and command line
}

const (
	bigExtents = 20_000   // of 4 KiB, far apart
	bigChanges = 1_000    // of them are rewritten before the second point
	bigSize    = 16 << 40 // cut to what the filesystem can hold
)

// measureBig makes an index of so many entries and a sparse volume, and takes
// the server through every job on them. other is a disk with much data.
func measureBig(ctx context.Context, conf config, work, other string) (b big, err error) {
	dir := filepath.Join(work, "big")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return b, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b.Entries, b.Extents = conf.entries, bigExtents
	disk := filepath.Join(dir, "disk.raw")
	if b.Size, err = sparseDisk(disk, conf.seed); err != nil {
		return b, err
	}
	fmt.Fprintf(os.Stderr, "making an index of %d entries\n", b.Entries)
	if err := manyEntries(ctx, filepath.Join(dir, "data", "index"), b.Entries); err != nil {
		return b, err
	}
	if err := inChild(ctx, &b.Open, "open", dir); err != nil {
		return b, err
	}
	s, err := cairnTool{conf.cairn}.start(ctx, dir, disk)
	if err != nil {
		return b, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	c := s.(*cairnSession)
	step := func(name string, do func(context.Context) (usage, error)) {
		if err != nil {
			return
		}
		var u usage
		if u, err = do(ctx); err == nil {
			b.Steps = append(b.Steps, bigStep{name, u.wall, u.anon})
			fmt.Fprintf(os.Stderr, "16 TiB, %d entries: %-17s %6.2fs, %4.0f MiB\n", b.Entries, name, u.wall.Seconds(), mebi(u.anon))
		}
	}
	step("full", func(ctx context.Context) (usage, error) { return c.backup(ctx, 0) })
	if err == nil {
		err = rewriteSome(disk, b.Size, conf.seed)
	}
	step("second", func(ctx context.Context) (usage, error) { return c.backup(ctx, 1) })
	step("two fulls at once", func(ctx context.Context) (usage, error) { return c.twoFulls(ctx, other) })
	step("restore", c.restore)
	step("rollback", c.rollback)
	for _, words := range [][]string{{"scrub"}, {"repo", "prune"}} {
		step(words[len(words)-1], func(ctx context.Context) (usage, error) {
			u, _, err := c.cli(ctx, words...)
			return u, err
		})
	}
	return b, err
}

// twoFulls takes a full of the session's volume and one of another disk.
func (s *cairnSession) twoFulls(ctx context.Context, other string) (u usage, err error) {
	volume, err := s.register(ctx, other)
	if err != nil {
		return u, err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		_, _, err := s.job(ctx, "snapshot", "create", s.volume, "--name", "again", "--full")
		return err
	})
	group.Go(func() (err error) {
		u, _, err = s.job(ctx, "snapshot", "create", volume, "--name", "other", "--full")
		return err
	})
	return u, group.Wait()
}

// sparseDisk makes a volume as large as the filesystem allows, with extents
// spread over it.
func sparseDisk(path string, seed uint64) (size int64, err error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size = bigSize
	for err = f.Truncate(size); err != nil && size > 1<<40; err = f.Truncate(size) {
		size -= 1 << 20 // ext4 ends one block before 16 TiB
	}
	if err != nil {
		return 0, err
	}
	return size, writePages(f, size, rand.New(rand.NewPCG(seed, 3)), bigExtents)
}

func rewriteSome(path string, size int64, seed uint64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(writePages(f, size, rand.New(rand.NewPCG(seed, 4)), bigChanges), f.Close())
}

func writePages(f *os.File, size int64, rng *rand.Rand, n int) error {
	page := make([]byte, 4096)
	for range n {
		for i := 0; i < len(page); i += 8 {
			binary.LittleEndian.PutUint64(page[i:], rng.Uint64())
		}
		if _, err := f.WriteAt(page, rng.Int64N(size/4096)*4096); err != nil {
			return err
		}
	}
	return f.Sync()
}

// manyEntries fills an index with places of chunks that nobody has.
func manyEntries(ctx context.Context, dir string, n int64) (err error) {
	x, err := index.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	rng := rand.New(rand.NewPCG(5, 5))
	return x.Rebuild(ctx, func(add func(index.Entry) error) error {
		for range n {
			var e index.Entry
			for k := 0; k < len(e.ID); k += 8 {
				binary.LittleEndian.PutUint64(e.ID[k:], rng.Uint64())
			}
			binary.LittleEndian.PutUint64(e.Pack[:], rng.Uint64())
			if err := add(e); err != nil {
				return err
			}
		}
		return nil
	})
}

// bigChild is measureBig by itself, for who works on it: BINARY WORK MILLIONS DISK.
func bigChild(ctx context.Context, args []string) (any, error) {
	millions, err := strconv.ParseInt(args[2], 10, 64)
	if err != nil {
		return nil, err
	}
	return measureBig(ctx, config{cairn: args[0], seed: 1, entries: millions * 1_000_000}, args[1], args[3])
}

// openChild opens a repository with the index of dir, several times.
func openChild(ctx context.Context, args []string) (any, error) {
	dir := args[0]
	store, err := file.Open(filepath.Join(dir, "opened"))
	if err != nil {
		return nil, err
	}
	key := repo.NewKey()
	if err := repo.Init(ctx, store, key, time.Now()); err != nil {
		return nil, err
	}
	var all []time.Duration
	for range 3 {
		begin := time.Now()
		r, err := repo.Open(ctx, store, key, filepath.Join(dir, "data", "index"))
		if err != nil {
			return nil, err
		}
		all = append(all, time.Since(begin))
		if err := r.Close(); err != nil {
			return nil, err
		}
	}
	return all[0], nil // the first: nothing of it was cached by us
}
