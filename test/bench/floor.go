package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"cairn/internal/extent"
)

// floor is what no tool can beat on this machine: the bytes must be read and
// hashed once, and what the repository holds must be written once.
type floor struct {
	data, repo         int64
	hash, write, plain time.Duration // read+hash all data; write the repository; write all data
}

// full is the least time of a first backup: reading and writing may overlap.
func (f floor) full() time.Duration { return max(f.hash, f.write) }

// measureFloor uses the size of cairn's own repository after the first day.
func measureFloor(ctx context.Context, work string, disk *testDisk, results map[string][]cycle) (f floor, err error) {
	f.data = disk.data
	f.repo = median(results["cairn"], func(c cycle) int64 { return c.repoFull })
	begin := time.Now()
	if err := hashAll(ctx, disk.days[1]); err != nil {
		return f, err
	}
	f.hash = time.Since(begin)
	if f.write, err = timeWrite(work, f.repo); err != nil {
		return f, err
	}
	f.plain, err = timeWrite(work, f.data)
	return f, err
}

// hashAll reads and hashes a file's data on all cores.
func hashAll(ctx context.Context, path string) (err error) {
	const piece = 4 << 20
	var pieces []extent.Range
	err = eachData(path, func(_ *os.File, r extent.Range) error {
		for off := r.Off; off < r.End(); off += piece {
			pieces = append(pieces, extent.Range{Off: off, Len: min(piece, r.End()-off)})
		}
		return nil
	})
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	group, ctx := errgroup.WithContext(ctx)
	cores := runtime.NumCPU()
	for core := range cores {
		group.Go(func() error {
			buf := make([]byte, piece)
			for i := core; i < len(pieces) && ctx.Err() == nil; i += cores {
				p := buf[:pieces[i].Len]
				if _, err := f.ReadAt(p, pieces[i].Off); err != nil {
					return err
				}
				blake3.Sum256(p)
			}
			return ctx.Err()
		})
	}
	return group.Wait()
}

// timeWrite writes n bytes in order, durably.
func timeWrite(work string, n int64) (took time.Duration, err error) {
	path := filepath.Join(work, "floor.bin")
	defer func() { err = errors.Join(err, os.Remove(path)) }()
	buf := make([]byte, 4<<20)
	for i := range buf {
		buf[i] = byte(i * 31)
	}
	if err := syncDir(work); err != nil {
		return 0, err
	}
	begin := time.Now()
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	for left := n; left > 0 && err == nil; left -= int64(len(buf)) {
		_, err = f.Write(buf[:min(left, int64(len(buf)))])
	}
	err = errors.Join(err, f.Sync(), f.Close())
	return time.Since(begin), err
}

// readData reads a file's data, in order.
func readData(path string, use func(p []byte)) error {
	buf := make([]byte, 1<<20)
	return eachData(path, func(f *os.File, r extent.Range) error {
		for off := r.Off; off < r.End(); off += int64(len(buf)) {
			p := buf[:min(int64(len(buf)), r.End()-off)]
			if _, err := f.ReadAt(p, off); err != nil {
				return err
			}
			use(p)
		}
		return nil
	})
}
