package collectmodel

import (
	"os"
	"testing"
)

// removal turns one rule off in a world where it matters.
type removal struct {
	rule rule
	want outcome
	in   world
}

func oneBackup(start func() state, want contents) world {
	return world{start: start, sessions: []sessionSpec{{want: want}}, collections: 1}
}

// alter changes a copy of a world.
func alter(w world, fn func(*world)) world { fn(&w); return w }

func removals() []removal {
	plain := alter(oneBackup(onePoint, contentX), func(w *world) { w.deletes = 1 })
	two := alter(plain, func(w *world) { w.collections = 2 })
	terms := alter(oneBackup(emptyRepository, contentX), func(w *world) { w.sessionTerms, w.collections = 3, 0 })
	pins := alter(plain, func(w *world) { w.undeletes, w.images, w.readers = 1, 1, 1 })
	compaction := alter(oneBackup(sharedPack, contentY), func(w *world) { w.compactions = 1 })
	moved := alter(oneBackup(relocated, contentX), func(w *world) { w.compactions, w.readers = 1, 1 })
	back := alter(oneBackup(rescued, contentX), func(w *world) { w.collections, w.compactions, w.onePack = 2, 1, true })
	heal := alter(oneBackup(twoCopies, contentX), func(w *world) { w.collections, w.compactions, w.rots = 2, 1, 1 })
	older := alter(oneBackup(olderDatabase, contentX), func(w *world) { w.deletes, w.mayAbort = 1, true })
	claimed := world{start: sharedPack, collections: 3, compactions: 2, collectorTerms: 1}
	return []removal{
		{registerFirst, loss, plain},
		{sessionTerm, loss, terms},
		{hitLiveRow, harmless, two},
		{hitLiveRow, harmless, compaction},
		{hitCommitted, loss, alter(oneBackup(sharedPack, contentX), func(w *world) { w.compactions = 1 })},
		{stampHits, loss, plain},
		{stampLiveHits, loss, plain},
		{stampOwn, loss, plain},
		{rescue, loss, plain},
		{refuseDeleting, loss, two},
		{pinParent, broken, plain},
		{pinParent, loss, alter(plain, func(w *world) { w.bytesOnly = true })},
		{abortFirst, loss, alter(plain, func(w *world) { w.cancels = true })},
		{recordDrop, loss, terms},
		{epochFirst, loss, plain},
		{listBeforeRows, loss, plain},
		{oneRead, stuck, plain},
		{rowsAreRoots, loss, plain},
		{rowNamesManifest, stuck, two},
		{rowNamesManifest, stuck, alter(two, func(w *world) { w.mayAbort, w.drainEvery = true, 1 })}, // and for ever
		{unknownIsRoot, loss, older},
		{binIsRoot, loss, pins},
		{pinImage, loss, pins},
		{pinReader, loss, pins},
		{liveRowFirst, harmless, back},
		{liveRowFirst, harmless, alter(moved, func(w *world) { w.collections = 2 })},
		{tryAll, stuck, back},
		{relocationCommitted, loss, claimed},
		{keepRelocations, loss, moved},
		{abortUnreadable, loss, plain},
		{spareActive, loss, two},
		{spareNewborn, harmless, two},
		{spareNewborn, harmless, compaction},
		{spareStamped, loss, plain},
		{checkStamp, loss, compaction},
		{relocateFirst, loss, alter(claimed, func(w *world) { w.collections = 1 })},
		{healIsFinal, loss, heal},
		{checkCondemned, loss, plain},
		{recordDelete, loss, plain},
		{deleteLater, harmless, two},
		{deleteLater, harmless, compaction},
		{strayKinds, leak, alter(plain, func(w *world) { w.cancels, w.drainEvery = true, 1 })},
		{collectorTerm, stuck, claimed},
		{collectorTerm, loss, world{start: rescued, collections: 3, compactions: 1, collectorTerms: 1, mayAbort: true}},
		{readerRereads, loss, moved},
		{wholeLine, broken, alter(oneBackup(parentAndChild, contentX), func(w *world) { w.deletes, w.undeletes = 1, 1 })},
	}
}

// TestEveryRuleIsNeeded turns one rule off at a time. It fails when a rule
// that is needed is not missed any more, and when one that only saves work is.
func TestEveryRuleIsNeeded(t *testing.T) {
	tried := map[rule]bool{}
	for _, rm := range removals() {
		tried[rm.rule] = true
		w := rm.in
		w.off = without(rm.rule)
		f := w.search(3_000_000)
		got := f.wrong.kind
		if got != rm.want || !f.full && got == harmless {
			t.Errorf("without %q: %s after %d steps (%s), want %s", rm.rule, got, f.depth, f.wrong.text, rm.want)
		}
		if got == harmless {
			t.Logf("without %q: harmless in %d states", rm.rule, f.states)
			continue
		}
		t.Logf("without %q: %s after %d steps: %s", rm.rule, got, f.depth, f.wrong.text)
		f.log(t)
	}
	for r := range numRules {
		if !tried[r] {
			t.Errorf("nothing shows what %q is for", r)
		}
	}
}

// TestHarmlessRulesEverywhere looks for a use of the rules that only save work
// in all worlds.
func TestHarmlessRulesEverywhere(t *testing.T) {
	if os.Getenv("CAIRN_LONG") != "1" {
		t.Skip("searches all worlds once for each such rule: set CAIRN_LONG=1 to run it")
	}
	done := map[rule]bool{}
	for _, rm := range removals() {
		if rm.want != harmless || done[rm.rule] {
			continue
		}
		done[rm.rule] = true
		states := 0 // of all worlds
		for _, w := range worlds() {
			w.off = without(rm.rule)
			f := w.search(1 << 30)
			states += f.states
			t.Logf("without %q, %s: %d states", rm.rule, w.name, f.states)
			if f.wrong.kind != harmless {
				t.Errorf("without %q, %s: after %d steps: %s", rm.rule, w.name, f.depth, f.wrong.text)
				f.log(t)
			}
		}
		t.Logf("without %q: harmless in %d states", rm.rule, states)
	}
}
