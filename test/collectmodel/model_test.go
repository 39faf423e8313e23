package collectmodel

import (
	"os"
	"testing"
	"time"
)

// TestProtocolHolds visits every state of every world, and drains a share of
// them.
func TestProtocolHolds(t *testing.T) {
	all := worlds()
	drainEvery := uint64(8)
	switch {
	case os.Getenv("CAIRN_LONG") == "1":
		all = append(all, largeWorlds()...)
	case raceDetector:
		all = all[:2] // for the search itself, which is the same in all worlds
	}
	var states, steps int
	seen := map[event]bool{}
	for _, w := range all {
		if !w.mayAbort { // what an older database does not know is kept
			w.drainEvery = drainEvery
		}
		begin := time.Now()
		f := w.search(1 << 30)
		t.Logf("%-34s %9d states, %9d steps, longest history %2d, %5.1f s", w.name, f.states, f.steps, f.depth, time.Since(begin).Seconds())
		if f.wrong.kind != harmless {
			t.Errorf("%s: after %d steps: %s", w.name, f.depth, f.wrong.text)
			f.log(t)
		}
		states, steps = states+f.states, steps+f.steps
		for e := range numEvents {
			seen[e] = seen[e] || w.saw(e)
		}
	}
	t.Logf("%d states, %d steps", states, steps)
	for e := range numEvents {
		if !seen[e] && !raceDetector {
			t.Errorf("no world has seen this: %s", e)
		}
	}
}
