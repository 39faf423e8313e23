package engine

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/faulty"
	"cairn/internal/blobstore/mem"
	"cairn/internal/errs"
)

func countBlobs(n *int) func(blobstore.Info) error {
	return func(blobstore.Info) error {
		*n++
		return nil
	}
}

// A capture is cut off at every durable operation, done or not done; the next
// term takes over what is durable, deletes the rest and ends with the same
// content.
func TestCrashAtEveryDurableOperation(t *testing.T) {
	content := make([]byte, 3<<20)
	fill(rand.New(rand.NewPCG(3, 1)), content)
	v := newVolume(4 << 20)
	if err := v.WriteAt(t.Context(), content, 5000); err != nil {
		t.Fatal(err)
	}
	for _, whole := range []bool{false, true} {
		for n := 1; !crashOnce(t, v, n, whole); n++ {
		}
	}
}

// crashOnce reports whether the capture had fewer than n durable operations.
func crashOnce(t *testing.T, v *memVolume, n int, whole bool) (done bool) {
	st := mem.New()
	f := faulty.New(st, nil)
	r := newRigOn(t, f)
	f.SetPlan(faulty.Crash(n, whole))
	reg := newRegistry()
	s, err := r.e.OpenSession(t.Context(), "job", 1, reg)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Capture(t.Context(), r.spec(v, nil), nil)
	s.Close()
	if err == nil {
		return true
	}
	if !errors.Is(err, faulty.ErrInjected) {
		t.Fatalf("operation %d: %v", n, err)
	}
	r.store = st
	r.reopen()
	if s, err = r.e.OpenSession(t.Context(), "job", 2, reg); err != nil {
		t.Fatal(err)
	}
	c, err := s.Capture(t.Context(), r.spec(v, nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.commit(s, reg)
	s.Close()
	if got, err := r.export(c.Ref); err != nil || !bytes.Equal(got, v.bytes()) {
		t.Fatalf("operation %d: the adopted session's point is wrong (%v)", n, err)
	}
	r.scrub(c.Ref)
	count, want := 0, 2 // the header
	if err := r.e.r.Blobs(t.Context(), countBlobs(&count)); err != nil {
		t.Fatal(err)
	}
	for _, p := range reg.packs {
		pr, err := p.repo()
		if err != nil {
			t.Fatal(err)
		}
		want += len(pr.Pack.Copies())
	}
	if count != want {
		t.Fatalf("operation %d: %d blobs are there, %d are registered", n, count, want)
	}
	return false
}

// A read that fails says so; it is never taken for damage or for zeros.
func TestReadFailsAtEveryCall(t *testing.T) {
	f := faulty.New(mem.New(), nil)
	r := newRigOn(t, f)
	v := newVolume(4 << 20)
	b := make([]byte, 3<<20)
	fill(rand.New(rand.NewPCG(10, 1)), b)
	if err := v.WriteAt(t.Context(), b, 0); err != nil {
		t.Fatal(err)
	}
	c := r.take(v, nil)
	for n := 1; ; n++ {
		r.reopen()
		f.SetPlan(faulty.From(n, faulty.Any, faulty.FailBefore))
		got, err := r.export(c.Ref)
		f.SetPlan(nil)
		if err == nil {
			if !bytes.Equal(got, v.bytes()) {
				t.Fatal("wrong without an error")
			}
			if n < 10 {
				t.Fatalf("only %d reads", n)
			}
			return
		}
		if !errors.Is(err, faulty.ErrInjected) || errs.Is(err, errs.Corrupt) {
			t.Fatalf("read %d: %v", n, err)
		}
	}
}

// brokenSource fails at its last byte, when most of it was stored already.
type brokenSource struct{ *memVolume }

func (b brokenSource) ReadAt(ctx context.Context, buf []byte, off int64) error {
	if off+int64(len(buf)) == b.size {
		return faulty.ErrInjected
	}
	return b.memVolume.ReadAt(ctx, buf, off)
}

// A point that was given up leaves nothing in its session that the next point
// could refer to: the pack that was open then is never put.
func TestSessionGoesOnAfterAFailedPoint(t *testing.T) {
	r := newRig(t)
	for _, size := range []int{100 << 10, 9 << 20, 50 << 20} {
		v := newVolume(int64(size))
		b := make([]byte, size)
		rand.NewChaCha8([32]byte{byte(size >> 20)}).Read(b) //nolint:errcheck // never fails
		if err := v.WriteAt(t.Context(), b, 0); err != nil {
			t.Fatal(err)
		}
		reg := newRegistry()
		s, err := r.e.OpenSession(t.Context(), "job", 1, reg)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 { // each would keep a pack's memory, and there are two
			if _, err := s.Capture(t.Context(), r.spec(brokenSource{v}, nil), nil); !errors.Is(err, faulty.ErrInjected) {
				t.Fatalf("got %v", err)
			}
		}
		c, err := s.Capture(t.Context(), r.spec(v, nil), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.commit(s, reg)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := r.export(c.Ref); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("%d bytes: wrong after a failed point (%v)", size, err)
		}
		r.scrub(c.Ref)
	}
}
