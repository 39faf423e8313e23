package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestPercentile(t *testing.T) {
	values := []float64{5, 1, 4, 2, 3}
	for p, want := range map[float64]float64{0: 1, 0.5: 3, 0.99: 5, 1: 5} {
		if got := percentile(values, p); got != want {
			t.Errorf("percentile %v is %v, want %v", p, got, want)
		}
	}
	if got := percentile(nil, 0.5); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
	if !slices.Equal(values, []float64{5, 1, 4, 2, 3}) {
		t.Error("the values were sorted in place")
	}
}

func TestGoals(t *testing.T) {
	for _, tt := range []struct {
		goal goal
		met  bool
	}{
		{goal{got: 0.9, limit: 0.9}, true},
		{goal{got: 0.89, limit: 0.9}, false},
		{goal{got: 2, limit: 0.9}, true},
		{goal{got: 10, limit: 10, most: true}, true},
		{goal{got: 10.1, limit: 10, most: true}, false},
		{goal{got: 1, limit: 10, most: true}, true},
	} {
		if tt.goal.met() != tt.met {
			t.Errorf("%+v: met %v", tt.goal, !tt.met)
		}
	}
	// Every figure is compared with the better peer.
	r := &results{tables: map[string]map[string][]float64{}, conf: config{gib: 1}}
	for _, j := range fioJobs() {
		for i, name := range names() {
			r.add(j.name, name, float64(10*(i+1)))
		}
	}
	if g := r.goals()[0]; g.got != 10.0/50 || g.met() {
		t.Errorf("the first goal is %+v", g)
	}
	if text := r.report(t.Context()); strings.Count(text, "**missed**") != 12 {
		t.Errorf("the report:\n%s", text)
	}
}

func TestPauses(t *testing.T) {
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	c := &rig{process: &process{log: log}}
	_, err = log.WriteString("level=INFO msg=\"volumes frozen\" hold=a volumes=1 pause=1ms\n" +
		"level=INFO msg=other pause=9s\n" +
		"level=INFO msg=\"volumes frozen\" hold=b volumes=1 pause=250µs\n")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.pauses(1); err != nil || !slices.Equal(got, []float64{0.00025}) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := c.pauses(3); err == nil {
		t.Error("three pauses were found in a log of two")
	}
}
