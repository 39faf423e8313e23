package blobtest

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"cairn/internal/blobstore"
)

func testConcurrentPut(t *testing.T, s blobstore.Store) {
	const writers, rounds = 8, 10
	for r := range rounds {
		name := fmt.Sprintf("race/%d/n", r)
		var won atomic.Int32
		winner := atomic.Int32{}
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				err := s.Put(t.Context(), name, Bytes(uint64(w), 5000), Bytes(uint64(w+100), 3000))
				switch {
				case err == nil:
					won.Add(1)
					winner.Store(int32(w))
				case !errors.Is(err, blobstore.ErrExists):
					t.Errorf("Put: %v, want nil or ErrExists", err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d Puts of one name succeeded", won.Load())
		}
		w := int(winner.Load())
		wantBlob(t, s, name, append(Bytes(uint64(w), 5000), Bytes(uint64(w+100), 3000)...))
	}
}

// testConcurrentMix lets every method run against every other. Whoever sees a
// blob sees it whole: its bytes follow from its name.
func testConcurrentMix(t *testing.T, s blobstore.Store) {
	const workers, rounds, names = 6, 60, 12
	content := func(i int) []byte { return Bytes(uint64(i), 2000+i) }
	nameOf := func(i int) string { return fmt.Sprintf("mix/%d/%d", i%3, i) }
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for r := range rounds {
				i := (w*7 + r*5) % names
				if err := mixStep(t, s, (w+r)%5, nameOf(i), content(i)); err != nil {
					t.Errorf("worker %d round %d: %v", w, r, err)
				}
			}
		})
	}
	wg.Wait()
	for name := range listed(t, s, "mix/") {
		var i, folder int
		if _, err := fmt.Sscanf(name, "mix/%d/%d", &folder, &i); err != nil {
			t.Fatalf("List gave %s", name)
		}
		wantBlob(t, s, name, content(i))
	}
}

func mixStep(t *testing.T, s blobstore.Store, step int, name string, content []byte) error {
	ctx := t.Context()
	switch step {
	case 0, 1:
		if err := s.Put(ctx, name, content); err != nil && !errors.Is(err, blobstore.ErrExists) {
			return err
		}
	case 2:
		buf := make([]byte, len(content)-10)
		switch _, err := s.ReadAt(ctx, name, buf, 10); {
		case errors.Is(err, blobstore.ErrNotFound):
		case err != nil:
			return err
		case !bytes.Equal(buf, content[10:]):
			return fmt.Errorf("read %s: wrong bytes", name)
		}
	case 3:
		return s.Delete(ctx, name)
	case 4:
		if _, err := s.Stat(ctx, name); err != nil && !errors.Is(err, blobstore.ErrNotFound) {
			return err
		}
		return s.List(ctx, "mix", func(blobstore.Info) error { return nil })
	}
	return nil
}
