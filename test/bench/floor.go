package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/internal/extent"
	"cairn/internal/repo"
	"cairn/internal/repo/codec"
	"cairn/internal/repo/keys"
)

// floor is what this machine needs at least for the work that cannot be left
// out, with all of it spread over all cores.
type floor struct {
	data, coded, repo int64         // bytes of data, of its frames as compressed, of the repository
	read, hash        time.Duration // from the page cache; ids of chunks
	encode, decode    time.Duration // frames
	write, plain      time.Duration // the repository; all data
}

// full reads, hashes, compresses, decodes again and compares; the disk writes
// meanwhile.
func (f floor) full() time.Duration { return max(f.read+f.hash+f.encode+f.decode, f.write) }

// second reads and hashes everything.
func (f floor) second() time.Duration { return f.read + f.hash }

// restore decodes and hashes; the disk writes meanwhile.
func (f floor) restore() time.Duration { return max(f.decode+f.hash, f.plain) }

// measureFloor uses the size of cairn's own repository after the first day.
func measureFloor(ctx context.Context, work string, disk *testDisk, results map[string][]cycle) (f floor, err error) {
	f.data = disk.data
	f.repo = median(results["cairn"], func(c cycle) int64 { return c.repoFull })
	if err := f.measureWork(ctx, disk.days[1]); err != nil {
		return f, err
	}
	if f.write, err = timeWrite(work, f.repo); err != nil {
		return f, err
	}
	f.plain, err = timeWrite(work, f.data)
	return f, err
}

const (
	floorFrame = repo.FrameChunks * repo.ChunkSize
	floorPiece = 4 << 20
)

// measureWork takes a file's data through every step, on all cores.
func (f *floor) measureWork(ctx context.Context, path string) error {
	var pieces []extent.Range
	err := eachData(path, func(_ *os.File, r extent.Range) error {
		for off := r.Off; off < r.End(); off += floorPiece {
			pieces = append(pieces, extent.Range{Off: off, Len: min(floorPiece, r.End()-off)})
		}
		return nil
	})
	if err != nil {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	group, ctx := errgroup.WithContext(ctx)
	cores := runtime.NumCPU()
	all := make([]floor, cores)
	for core := range cores {
		group.Go(func() error {
			w, err := newFloorWorker(&all[core])
			if err != nil {
				return err
			}
			defer w.codec.Close()
			for i := core; i < len(pieces) && ctx.Err() == nil; i += cores {
				if err := w.piece(file, pieces[i]); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, o := range all {
		f.coded += o.coded
		f.read += o.read / time.Duration(cores)
		f.hash += o.hash / time.Duration(cores)
		f.encode += o.encode / time.Duration(cores)
		f.decode += o.decode / time.Duration(cores)
	}
	return nil
}

// floorWorker is one core's share.
type floorWorker struct {
	sum            *floor
	ids            *keys.Hasher
	codec          codec.Codec
	buf, enc, back []byte
}

func newFloorWorker(sum *floor) (*floorWorker, error) {
	c, err := codec.New()
	if err != nil {
		return nil, err
	}
	return &floorWorker{
		sum: sum, ids: keys.NewMaster().Chunks(), codec: c,
		buf: make([]byte, floorPiece), enc: make([]byte, 2*floorFrame), back: make([]byte, floorFrame),
	}, nil
}

func (w *floorWorker) piece(file *os.File, r extent.Range) error {
	begin := time.Now()
	lap := func(d *time.Duration) {
		now := time.Now()
		*d += now.Sub(begin)
		begin = now
	}
	p := w.buf[:r.Len]
	if _, err := file.ReadAt(p, r.Off); err != nil {
		return err
	}
	lap(&w.sum.read)
	for chunk := range slices.Chunk(p, repo.ChunkSize) {
		w.ids.ID(chunk)
	}
	lap(&w.sum.hash)
	for frame := range slices.Chunk(p, floorFrame) {
		enc, err := w.codec.Encode(w.enc, frame)
		if err != nil {
			return err
		}
		w.sum.coded += int64(min(len(enc), len(frame)))
		lap(&w.sum.encode)
		if len(enc) >= len(frame) {
			continue
		}
		if err := w.codec.Decode(w.back[:len(frame)], enc); err != nil || !bytes.Equal(w.back[:len(frame)], frame) {
			return errors.New("a frame does not decode to what it was made of")
		}
		lap(&w.sum.decode)
	}
	return nil
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
