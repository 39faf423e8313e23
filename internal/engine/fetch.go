package engine

import (
	"bytes"
	"cmp"
	"context"
	"slices"

	"cairn/internal/repo"
)

// fetchAll fetches and writes batches.
func (r *restore) fetchAll(ctx context.Context, batches <-chan batch) error {
	x, err := r.e.r.NewReader()
	if err != nil {
		return err
	}
	defer x.Close()
	f := fetcher{r: r, x: x}
	return each(ctx, batches, func(b batch) error {
		if err := f.fetch(ctx, b.needs); err != nil {
			return err
		}
		b.span.finish()
		return nil
	})
}

// fetcher is one goroutine's memory for fetching.
type fetcher struct {
	r     *restore
	x     *repo.Reader
	want  []byte // of a batch's chunks, in the order of the volume
	have  []byte // what the target holds of some of them
	wants []repo.Want
}

// fetch writes chunks, neighbours in the volume with one call.
func (f *fetcher) fetch(ctx context.Context, needs []need) error {
	if f.want == nil {
		f.want = make([]byte, restoreBatch*chunkSize)
		f.have = make([]byte, repo.FrameChunks*chunkSize)
	}
	inVolume := make([]int, len(needs))
	for i := range inVolume {
		inVolume[i] = i
	}
	slices.SortFunc(inVolume, func(a, b int) int { return cmp.Compare(needs[a].idx, needs[b].idx) })
	f.wants = append(f.wants[:0], make([]repo.Want, len(needs))...)
	for at, i := range inVolume {
		f.wants[i] = repo.Want{Ref: needs[i].ref, At: at * chunkSize}
	}
	if err := f.x.Fetch(ctx, f.wants, f.want); err != nil {
		return err
	}
	for at := 0; at < len(needs); {
		first := needs[inVolume[at]]
		n := 1
		for at+n < len(needs) && (!first.exists || n < repo.FrameChunks) {
			next := needs[inVolume[at+n]]
			if next.idx != first.idx+int64(n) || next.exists != first.exists {
				break
			}
			n++
		}
		if err := f.write(ctx, first, f.want[at*chunkSize:(at+n)*chunkSize]); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// write writes the pages that differ of neighbouring chunks, of which first is
// the first.
func (f *fetcher) write(ctx context.Context, first need, want []byte) error {
	off := first.idx * chunkSize
	want = want[:min(int64(len(want)), f.r.target.Size()-off)]
	var have []byte
	if first.exists {
		have = f.have[:len(want)]
		if err := f.r.target.ReadAt(ctx, have, off); err != nil {
			return err
		}
	}
	return f.r.write(ctx, off, have, want)
}

// write makes the target at off, which holds have, equal to want: runs of
// pages that differ are written, or zeroed where want is zeros. A nil slice
// stands for zeros of the other's length.
func (r *restore) write(ctx context.Context, off int64, have, want []byte) error {
	n := max(len(have), len(want))
	for i := 0; i < n; {
		kind, end := pageKind(have, want, i, n), i+pageSize
		for end < n && pageKind(have, want, end, n) == kind {
			end += pageSize
		}
		end = min(end, n)
		length := int64(end - i)
		at := off + int64(i)
		switch kind {
		case pageZero:
			if err := r.target.Zero(ctx, at, length); err != nil {
				return err
			}
			r.zeroed.Add(length)
		case pageData:
			if err := r.target.WriteAt(ctx, want[i:end], at); err != nil {
				return err
			}
			r.written.Add(length)
		}
		i = end
	}
	return nil
}

type pageDiff int

const (
	pageEqual pageDiff = iota
	pageZero
	pageData
)

func pageKind(have, want []byte, i, n int) pageDiff {
	end := min(i+pageSize, n)
	switch {
	case want == nil:
		if repo.AllZero(have[i:end]) {
			return pageEqual
		}
		return pageZero
	case have == nil:
		if repo.AllZero(want[i:end]) {
			return pageEqual
		}
		return pageData
	case bytes.Equal(have[i:end], want[i:end]):
		return pageEqual
	case repo.AllZero(want[i:end]):
		return pageZero
	}
	return pageData
}
