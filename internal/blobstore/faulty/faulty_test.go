package faulty_test

import (
	"errors"
	"fmt"
	"testing"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/blobtest"
	"cairn/internal/blobstore/faulty"
	"cairn/internal/blobstore/mem"
)

func TestConformanceWithoutFaults(t *testing.T) {
	blobtest.Run(t, func(*testing.T) blobstore.Store { return faulty.New(mem.New(), nil) })
}

func have(t *testing.T, s blobstore.Store, name string) bool {
	t.Helper()
	_, err := s.Stat(t.Context(), name)
	if err != nil && !errors.Is(err, blobstore.ErrNotFound) {
		t.Fatalf("Stat %s: %v", name, err)
	}
	return err == nil
}

// TestPlans puts n0 to n4 under each plan and looks which answers failed and
// which blobs are there.
func TestPlans(t *testing.T) {
	for _, tt := range []struct {
		name   string
		plan   faulty.Plan
		failed string
		there  string
	}{
		{"none", nil, ".....", "yyyyy"},
		{"once, before", faulty.Once(2, faulty.Only(faulty.Put), faulty.FailBefore), ".x...", "y.yyy"},
		{"once, after", faulty.Once(2, faulty.Durable, faulty.FailAfter), ".x...", "yyyyy"},
		{"lasting", faulty.From(3, faulty.Durable, faulty.FailBefore), "..xxx", "yy..."},
		{"lasting, first done", faulty.From(3, faulty.Durable, faulty.FailAfter), "..xxx", "yyy.."},
		{"crash, none", faulty.Crash(4, false), "...xx", "yyy.."},
		{"crash, whole", faulty.Crash(4, true), "...xx", "yyyy."},
		{"other op", faulty.From(1, faulty.Only(faulty.Delete), faulty.FailBefore), ".....", "yyyyy"},
		{"beyond the end", faulty.Crash(6, false), ".....", "yyyyy"},
		{"by name", func(c faulty.Call) (faulty.Outcome, error) {
			if c.Name == "n1" {
				return faulty.FailBefore, nil
			}
			return faulty.Pass, nil
		}, ".x...", "y.yyy"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			below := mem.New()
			s := faulty.New(below, tt.plan)
			failed, there := "", ""
			for i := range 5 {
				err := s.Put(t.Context(), fmt.Sprintf("n%d", i))
				switch {
				case err == nil:
					failed += "."
				case errors.Is(err, faulty.ErrInjected):
					failed += "x"
				default:
					t.Fatal(err)
				}
			}
			for i := range 5 {
				if have(t, below, fmt.Sprintf("n%d", i)) {
					there += "y"
				} else {
					there += "."
				}
			}
			if failed != tt.failed || there != tt.there {
				t.Errorf("failed %s, there %s; want %s, %s", failed, there, tt.failed, tt.there)
			}
			if c := s.Counts(); c.Durable != 5 || c.Calls != 5 || c.Op[faulty.Put] != 5 {
				t.Errorf("counts %+v", c)
			}
		})
	}
}

func TestEveryOpFails(t *testing.T) {
	mine := errors.New("mine")
	below := mem.New()
	if err := below.Put(t.Context(), "n", []byte("abc")); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, o := range []faulty.Outcome{faulty.FailBefore, faulty.FailAfter} {
		s := faulty.New(below, faulty.With(faulty.From(1, faulty.Any, o), mine))
		s.SetPlan(func(faulty.Call) (faulty.Outcome, error) { return o, mine })
		n, readErr := s.ReadAt(t.Context(), "n", make([]byte, 3), 0)
		_, statErr := s.Stat(t.Context(), "n")
		listErr := s.List(t.Context(), "", func(blobstore.Info) error { seen++; return nil })
		for op, err := range map[string]error{"Put": s.Put(t.Context(), "m"), "ReadAt": readErr, "Stat": statErr, "List": listErr, "Delete": s.Delete(t.Context(), "n")} {
			if !errors.Is(err, mine) {
				t.Errorf("%s with outcome %d: %v", op, o, err)
			}
		}
		if done := o == faulty.FailAfter; (n == 3) != done || have(t, below, "m") != done || have(t, below, "n") == done || (seen > 0) != done {
			t.Errorf("outcome %d: read %d bytes, list saw %d", o, n, seen)
		}
	}
}

// TestCrashEndsReads says that a dead store stays dead for reads too.
func TestCrashEndsReads(t *testing.T) {
	below := mem.New()
	s := faulty.New(below, faulty.Crash(1, true))
	if _, err := s.Stat(t.Context(), "n"); !errors.Is(err, blobstore.ErrNotFound) {
		t.Fatalf("before the crash: %v", err)
	}
	if err := s.Put(t.Context(), "n"); !errors.Is(err, faulty.ErrInjected) {
		t.Fatal(err)
	}
	if _, err := s.Stat(t.Context(), "n"); !errors.Is(err, faulty.ErrInjected) {
		t.Fatalf("after the crash: %v", err)
	}
	if !have(t, below, "n") {
		t.Error("the crash was to come after the Put")
	}
}
