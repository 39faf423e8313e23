package index

import (
	"context"
	"errors"
	"os"
	"slices"
	"unsafe"
)

const (
	rebuildBytes = 64 << 20
	rebuildFanIn = 32 // spills that are merged at once, readBuffer each
)

// Rebuild replaces all entries that were there when it began by those that
// fill adds, in any order and any number: they are sorted outside memory.
// Lookups see the old entries until the end; entries that are added meanwhile
// stay. If fill or anything else fails, the old entries stay too.
func (x *Index) Rebuild(ctx context.Context, fill func(add func(Entry) error) error) error {
	x.whole.Lock()
	defer x.whole.Unlock()
	if err := x.freeze(ctx); err != nil {
		return errContext("rebuild the dedup index", err)
	}
	defer x.thaw()
	s := &sorter{x: x}
	err := fill(func(e Entry) error { return s.add(ctx, e) })
	if err == nil {
		err = s.spill(ctx)
	}
	s.buf = nil
	var temp string
	if err == nil {
		temp, err = s.merge(ctx)
	}
	err = errors.Join(err, s.close())
	if err == nil {
		err = x.swap(ctx, temp)
	} else if temp != "" {
		err = errors.Join(err, os.Remove(temp))
	}
	return errContext("rebuild the dedup index", err)
}

// freeze keeps the present runs out of merges, so that they can be told from
// later ones at the end.
func (x *Index) freeze(ctx context.Context) error {
	x.write.Lock()
	defer x.write.Unlock()
	if err := x.alive(ctx); err != nil {
		return err
	}
	x.floor = x.seq
	return nil
}

func (x *Index) thaw() {
	x.write.Lock()
	defer x.write.Unlock()
	x.floor = 0
}

// swap removes the frozen runs and publishes the temp file. In this order a
// crash in between costs the index, but never brings back an old entry.
func (x *Index) swap(ctx context.Context, temp string) error {
	x.write.Lock()
	defer x.write.Unlock()
	err := x.alive(ctx)
	if err == nil {
		old := slices.DeleteFunc(slices.Clone(x.runs), func(r *run) bool { return r.seq > x.floor })
		err = x.replace(old)
	}
	if temp == "" {
		return err
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	r, err := x.publish(temp)
	if err != nil {
		return err
	}
	return x.replace(nil, r)
}

// sorter sorts entries in bounded memory.
type sorter struct {
	x      *Index
	buf    []Entry
	spills []*run
}

func (s *sorter) add(ctx context.Context, e Entry) error {
	if s.buf == nil {
		s.buf = make([]Entry, 0, max(1, s.x.sortBytes/int(unsafe.Sizeof(e))))
	}
	s.buf = append(s.buf, e)
	if len(s.buf) == cap(s.buf) {
		return s.spill(ctx)
	}
	return nil
}

// spill sorts what is in memory and writes it to a temp run.
func (s *sorter) spill(ctx context.Context) error {
	if len(s.buf) == 0 {
		return ctx.Err()
	}
	temp, err := writeSorted(ctx, s.x.dir, s.buf, nil)
	if err != nil {
		return err
	}
	s.buf = s.buf[:0]
	return s.keep(temp)
}

func (s *sorter) keep(temp string) error {
	r, err := openRun(temp, 0)
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	s.spills = append(s.spills, r)
	return nil
}

// merge turns all spills into one durable temp file; "" if there is none.
func (s *sorter) merge(ctx context.Context) (string, error) {
	for len(s.spills) > rebuildFanIn {
		if err := s.mergeFirst(ctx); err != nil {
			return "", err
		}
	}
	if len(s.spills) == 0 {
		return "", nil
	}
	return s.x.mergeFile(ctx, s.spills, nil, s.x.sync)
}

// mergeFirst merges the oldest spills into a new last one, so that all are
// merged about equally often.
func (s *sorter) mergeFirst(ctx context.Context) error {
	temp, err := s.x.mergeFile(ctx, s.spills[:rebuildFanIn], nil, nil)
	if err != nil {
		return err
	}
	err = drop(s.spills[:rebuildFanIn])
	s.spills = slices.Clone(s.spills[rebuildFanIn:])
	return errors.Join(err, s.keep(temp))
}

func (s *sorter) close() error { return drop(s.spills) }

// drop closes temp runs and removes their files.
func drop(runs []*run) error {
	var all []error
	for _, r := range runs {
		all = append(all, os.Remove(r.path))
	}
	return errors.Join(append(all, release(runs))...)
}
