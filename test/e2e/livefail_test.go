package e2e

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"cairn/internal/nbd"
	"cairn/test/e2e/harness"
)

// cutPoint begins a point and lets cut end it. It gives the job as it ended.
func (l *liveRig) cutPoint(t *testing.T, cut func(j harness.Job)) harness.Job {
	t.Helper()
	j := l.srv.API().Send(t, http.MethodPost, "volume_snapshots",
		map[string]any{"resources": []string{l.id}, "snapshot_name": "cut"}).Begin(t)
	cut(j)
	j = l.srv.API().Wait(t, j.ID)
	want := "available"
	if j.Status == "failed" {
		want = "ceased"
	}
	if s := l.srv.API().MustSnapshot(t, j.ResourceIDs[0]); s.Status != want {
		t.Fatalf("the job is %s (%s), but its point is %s", j.Status, j.Info, s.Status)
	}
	return j
}

// agree takes an increment and a full of a volume that nobody changes. Both
// are what the volume holds, so they have equal bytes.
func (l *liveRig) agree(t *testing.T, c *nbd.Client, cbt string) {
	t.Helper()
	want := l.settle(t, c)
	increment := l.srv.API().Create(t, "increment", false, l.id)[0]
	full := l.srv.API().Create(t, "full", true, l.id)[0]
	for _, id := range []string{increment, full} {
		l.srv.API().WantContent(t, "volume_snapshots", id, want)
	}
	if got := l.srv.API().MustSnapshot(t, increment).CBT; cbt != "" && got != cbt {
		t.Errorf("the increment after points that failed was found by %s, want %s", got, cbt)
	}
	if got := l.srv.API().MustSnapshot(t, full).CBT; got != "scan" {
		t.Errorf("a full was found by %s", got)
	}
}

// begun waits until a job does something.
func (l *liveRig) begun(t *testing.T, j harness.Job) {
	t.Helper()
	if !harness.Poll(time.Minute, func() bool { return l.srv.API().Job(t, j.ID).Status != "pending" }) {
		t.Fatalf("job %s does not begin", j.ID)
	}
}

// TestLivePointsFail lets points fail in the middle, one way or another, while
// clients write. No client notices, and what was changed before, during and
// after is in the next increment.
func TestLivePointsFail(t *testing.T) {
	t.Parallel()
	rounds := 3
	if harness.Long() {
		rounds = 25
	}
	l := newLiveRig(t, "--max-chain", "10000", "--workers", "1")
	c := l.dial(t, l.id)
	stop := l.write(t, c)
	l.srv.API().Create(t, "first", false, l.id)
	cancelled := 0
	for try := 0; cancelled < rounds; try++ {
		if try == 20*rounds {
			t.Fatalf("of %d jobs %d could be cancelled", try, cancelled)
		}
		failed := 0
		for range 1 + l.rng.IntN(2) {
			j := l.cutPoint(t, func(j harness.Job) {
				l.begun(t, j)
				// 409: it has ended
				l.srv.API().Send(t, http.MethodPost, "job/"+j.ID+"/cancel", map[string]any{})
			})
			if j.Status == "failed" {
				if !strings.Contains(j.Info, "cancelled") {
					t.Fatalf("the job failed by itself: %s", j.Info)
				}
				failed++
			}
		}
		if failed == 0 {
			continue
		}
		cancelled += failed
		stop()
		l.agree(t, c, "tracked")
		stop = l.write(t, c)
	}
	stop()
	l.agree(t, c, "tracked")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d points were cancelled", cancelled)
	l.srv.API().ScrubClean(t)
}

// The same with a scratch that is full after 256 pages, and a job that rests
// until clients have written them.
func TestLiveScratchFills(t *testing.T) {
	t.Parallel()
	rounds := 2
	if harness.Long() {
		rounds = 10
	}
	l := newLiveRig(t, "--max-chain", "10000", "--scratch", "1", "--yield", "1000")
	c := l.dial(t, l.id)
	// All pages hold something: zeros need no scratch.
	l.fill(t, c)
	l.srv.API().Create(t, "first", false, l.id)
	failed := 0
	for round := 0; failed < rounds; round++ {
		if round == 20*rounds {
			t.Fatalf("of %d points %d failed", round, failed)
		}
		stop := l.storm(t, c)
		j := l.cutPoint(t, func(harness.Job) {})
		if j.Status == "failed" {
			if !strings.Contains(j.Info, "the scratch space of 1 MiB is full") {
				t.Fatalf("the job failed, but says: %s", j.Info)
			}
			failed++
		}
		stop()
		l.agree(t, c, "tracked")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d points failed", failed)
	l.srv.API().ScrubClean(t)
}

// storm writes runs of pages, back to front, as fast as one connection takes
// them: a point, which goes front to back, meets it on its way.
func (l *liveRig) storm(t *testing.T, c *nbd.Client) (stop func()) {
	const run = 50 // pages
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for first := livePages - run; ctx.Err() == nil; first = (first - run + livePages) % livePages {
			var data []byte
			l.mu.Lock()
			for page := first; page < first+run; page++ {
				l.last++
				l.maybe[page] = l.last
				data = append(data, numbered(l.last)...)
			}
			l.mu.Unlock()
			// Not with ctx: a write that is given up is not answered.
			if err := c.WriteAt(context.Background(), data, int64(first)*livePage, 0); err != nil {
				return
			}
			l.mu.Lock()
			for page := first; page < first+run; page++ {
				l.holds[page], l.maybe[page] = l.maybe[page], 0
			}
			l.mu.Unlock()
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// fill writes to every page.
func (l *liveRig) fill(t *testing.T, c *nbd.Client) {
	t.Helper()
	for page := range livePages {
		l.last++
		if err := c.WriteAt(t.Context(), numbered(l.last), int64(page)*livePage, 0); err != nil {
			t.Fatal(err)
		}
		l.holds[page] = l.last
	}
}

// TestLivePointsKilled kills the server with -9 when a point has begun. The
// next process takes it again, of another moment, and the increment after it
// has everything.
func TestLivePointsKilled(t *testing.T) {
	t.Parallel()
	rounds := 2
	if harness.Long() {
		rounds = 15
	}
	l := newLiveRig(t, "--max-chain", "10000", "--workers", "1")
	again := 0
	for range rounds {
		c := l.dial(t, l.id)
		stop := l.write(t, c)
		l.cutPoint(t, func(j harness.Job) {
			l.begun(t, j)
			time.Sleep(time.Duration(l.rng.IntN(20)) * time.Millisecond)
			if !l.srv.API().Job(t, j.ID).Ended() {
				again++
			}
			l.srv.Kill(t)
			stop()
			_ = c.Close() // its server is dead
			l.srv.Run(t)
		})
		c = l.dial(t, l.id)
		l.agree(t, c, "")
		stop = l.write(t, c)
		l.srv.API().Create(t, "beside", false, l.id)
		stop()
		l.agree(t, c, "tracked")
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d of %d points were taken again after the kill", again, rounds)
	l.srv.API().ScrubClean(t)
}
