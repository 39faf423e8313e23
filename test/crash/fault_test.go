package crash_test

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/blobstore/faulty"
	"cairn/internal/errs"
)

// manner is how a call fails.
type manner int

const (
	undone  manner = iota // once, and nothing was done
	done                  // once, when all was done: the outcome is unknown
	lasting               // it and all calls after it, until the process ends
	manners
)

func (m manner) String() string {
	return [...]string{"once and not done", "once and done", "from then on"}[m]
}

// causes are what calls fail with: the product tells some errors apart.
var causes = []error{
	fmt.Errorf("a test says: %w", unix.EIO),
	errs.New(errs.Unavailable, "a test says that the resource does not answer; try again"),
	errs.New(errs.Full, "a test says that no space is left; free some and try again"),
}

// layer is what fails.
type layer int

const (
	blobCalls layer = iota
	rowCalls
	layers
)

func (l layer) String() string { return [...]string{"blob", "database"}[l] }

// parts are what of the blobs may be out of reach while the rest answers.
var parts = []string{"header/", "data/", "node/", "point/", "reloc/", "journal/", ".a", ".b"}

// inPart reports whether a call, "OP NAME", is about the part. A listing of all
// is not.
func inPart(part, name string) bool {
	_, name, _ = strings.Cut(name, " ")
	return strings.HasPrefix(name, part) || strings.HasSuffix(name, part)
}

// tried counts what was tried.
type tried struct{ calls, failures atomic.Int64 }

// TestFaults lets every call of the blob store and of the database fail in
// every history. The operation succeeds or says why not; and afterwards, or
// with the next process where the fault lasted, everything works and nothing
// is lost.
func TestFaults(t *testing.T) {
	var total [layers]tried
	var parted atomic.Int64
	t.Run("histories", func(t *testing.T) {
		for _, hist := range histories() {
			t.Run(hist.name, func(t *testing.T) {
				t.Parallel()
				b := begin(t, hist)
				for l := range layers {
					names, failures := b.failEach(t, l)
					t.Logf("%d %s calls, %d failures", len(names), l, failures)
					total[l].calls.Add(int64(len(names)))
					total[l].failures.Add(int64(failures))
					if l == blobCalls {
						parted.Add(b.failParts(t, names))
					}
				}
			})
		}
	})
	for l := range layers {
		t.Logf("%d histories, %d %s calls, %d failures", len(histories()), total[l].calls.Load(), l, total[l].failures.Load())
	}
	t.Logf("%d histories, %d times a part of the blobs was out of reach", len(histories()), parted.Load())
}

// begun is a history that is about to be carried out, any number of times.
type begun struct {
	history
	state *state
	hand  *hand
}

func begin(t *testing.T, hist history) *begun {
	t.Helper()
	w := newWorld(t)
	w.disk.reflink = hist.reflink
	b := &begun{history: hist, hand: &hand{t: t, story: newStory(), strict: true}}
	b.hand.base(w, hist)
	b.state = &state{story: b.hand.story}
	if err := b.state.read(w, nil); err != nil {
		t.Fatal(err)
	}
	return b
}

// failEach lets the n-th call of a layer fail, for every n that there is.
func (b *begun) failEach(t *testing.T, l layer) (names []string, failures int) {
	t.Helper()
	t.Run(fmt.Sprintf("no %s call", l), func(t *testing.T) { names = b.run(t, &fail{layer: l}) })
	for n := 1; n <= len(names); n++ {
		for _, m := range mannersOf(n, names) {
			t.Run(fmt.Sprintf("%s call %d, %s", l, n, m), func(t *testing.T) { b.run(t, nth(l, n, m)) })
			failures++
		}
	}
	return names, failures
}

// failParts puts each part of the blobs out of reach that the history's calls
// are about.
func (b *begun) failParts(t *testing.T, names []string) (parted int64) {
	t.Helper()
	for i, part := range parts {
		if slices.ContainsFunc(names, func(name string) bool { return inPart(part, name) }) {
			t.Run("all of "+part, func(t *testing.T) { b.run(t, ofPart(part, i)) })
			parted++
		}
	}
	return parted
}

// mannersOf chooses how the n-th call fails. Of many calls in a row that are
// alike, the first few stand for the others, and each eighth.
func mannersOf(n int, names []string) []manner {
	switch name := names[n-1]; {
	case long():
		return []manner{undone, done, lasting}
	case strings.HasPrefix(name, "Put ") && !strings.HasPrefix(name, "Put journal/"):
		return []manner{undone, done}
	case n%8 != 0 && isLikeBefore(names[:n]):
		return nil
	}
	return []manner{manner(n % int(manners))}
}

// isLikeBefore reports whether the last call is like some before it.
func isLikeBefore(names []string) bool {
	const some = 3
	last := likeness(names[len(names)-1])
	if last == "" || len(names) <= some {
		return false
	}
	for _, name := range names[len(names)-1-some:] {
		if likeness(name) != last {
			return false
		}
	}
	return true
}

// likeness is equal for calls that are alike, reads of one kind of blobs and
// looks for a job, and "" for all others.
func likeness(name string) string {
	op, blob, _ := strings.Cut(name, " ")
	switch op {
	case "Stat", "ReadAt":
		folder, _, _ := strings.Cut(blob, "/")
		return folder
	case "ClaimJob":
		return op
	}
	return ""
}

// fail is one failure. The zero one fails nothing.
type fail struct {
	layer layer // whose calls it counts
	turn  int   // chooses what is looked at afterwards
	lasts bool  // until the process ends
	// decide tells what happens to the n-th call of the layer; nil: it passes.
	decide func(n int, name string) (faulty.Outcome, error)
}

// nth lets the n-th call of a layer fail.
func nth(l layer, at int, m manner) *fail {
	cause := causes[(at/len(causes)+int(m))%len(causes)]
	return &fail{layer: l, turn: at, lasts: m == lasting, decide: func(n int, _ string) (faulty.Outcome, error) {
		switch {
		case n < at || n > at && m != lasting:
			return faulty.Pass, nil
		case m == done:
			return faulty.FailAfter, cause
		}
		return faulty.FailBefore, cause
	}}
}

// ofPart lets all calls about a part of the blobs fail.
func ofPart(part string, i int) *fail {
	return &fail{layer: blobCalls, turn: i, lasts: true, decide: func(_ int, name string) (faulty.Outcome, error) {
		if inPart(part, name) {
			return faulty.FailBefore, causes[i%len(causes)]
		}
		return faulty.Pass, nil
	}}
}

// run carries out the history on a copy of its base while calls fail, and
// looks at what comes of it. It returns the layer's calls.
func (b *begun) run(t *testing.T, f *fail) []string {
	t.Helper()
	w := newWorld(t)
	if err := b.state.lay(w); err != nil {
		t.Fatal(err)
	}
	h := &hand{t: t, story: b.state.story.clone(), strict: f.decide == nil, lasts: f.lasts}
	h.vols, h.pts = slices.Clone(b.hand.vols), slices.Clone(b.hand.pts)
	h.start(w)
	defer func() { h.p.stop() }()
	names := h.under(f, b.act)
	if f.lasts || h.leaves() || f.turn%4 == 1 {
		h.p.stop()
		h.start(w)
	}
	h.lasts, h.strict = false, true
	h.settle()
	if !t.Failed() {
		h.check()
		h.readBack(f.turn)
		h.work(f.turn)
		if f.turn%3 == 0 {
			h.clear()
		}
		h.check()
	}
	if t.Failed() && f.turn > 0 && f.turn <= len(names) {
		t.Logf("call %d is %s", f.turn, names[f.turn-1])
	}
	return names
}

// under does something while calls fail, until nothing more comes of it. It
// returns the calls of the layer.
func (h *hand) under(f *fail, act func(h *hand)) (names []string) {
	h.t.Helper()
	decide := func(n int, name string) (faulty.Outcome, error) {
		names = append(names, name)
		if f.decide == nil {
			return faulty.Pass, nil
		}
		return f.decide(n, name)
	}
	if f.layer == rowCalls {
		h.p.rows.setPlan(decide)
	} else {
		h.p.blobs.SetPlan(func(c faulty.Call) (faulty.Outcome, error) { return decide(c.N, c.Op.String()+" "+c.Name) })
	}
	act(h)
	h.quiet()
	d := h.p.w.disk
	d.onRead, d.onCheck, d.onWrite = nil, nil, nil
	h.p.blobs.SetPlan(nil)
	h.p.rows.setPlan(nil)
	return names
}

// leaves reports whether locks, pins or instants were said to be left for the
// next start to release.
func (h *hand) leaves() bool { return h.left.Load() || h.p.log.is(leaving) }

// quiet waits until nothing is unfinished, or until the process only waits for
// better times.
func (h *hand) quiet() {
	h.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(200 * time.Microsecond) {
		unfinished, holders, err := h.p.busy()
		if err != nil {
			h.failed("read the rows: %v", err)
			return
		}
		if len(unfinished) == 0 && (len(holders) == 0 || h.leaves()) || h.lasts && h.p.log.is(waiting) {
			return
		}
		if time.Now().After(end) {
			h.failed("the process neither ends its jobs nor says that it cannot: %+v, holders %v\n%s", unfinished, holders, stacks())
			return
		}
	}
}
