package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/internal/nbd"
	"cairn/test/e2e/harness"
)

const (
	historySectors = 12003 // of a volume: not whole pages, nor whole clusters
	historyLanes   = 6     // clients that wait for each answer before they go on
)

// historyRig is a server, and volumes whose history is recorded.
type historyRig struct {
	srv *harness.Server
	rng *rand.Rand
	h   *history
	ids []string // of the history's volumes

	points  []takenPoint
	tracked map[string]bool // volumes whose next point reads only what changed
}

// takenPoint is the points of one create call.
type takenPoint struct {
	begin, end int64
	ids        map[int]string // by the history's volume
}

func newHistoryRig(t *testing.T, extra ...string) *historyRig {
	t.Helper()
	return &historyRig{srv: serve(t, extra...), rng: harness.Rand(harness.Seed(t)), h: newHistory(), tracked: map[string]bool{}}
}

// add makes a volume known to the history, with what a point has or zeros.
func (r *historyRig) add(t *testing.T, id string, content []byte) {
	t.Helper()
	if _, err := r.h.addVolume(historySectors, content); err != nil {
		t.Fatal(err)
	}
	r.ids = append(r.ids, id)
}

// write lets clients write to all volumes until they are stopped: each lane
// one request at a time, on any of the volumes. Some lanes have a connection
// of their own, some share one, some use several in turn.
func (r *historyRig) write(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	var clients [][]*nbd.Client
	for _, connections := range []int{1, 1, 4} {
		var cs []*nbd.Client
		for _, id := range r.ids {
			cs = append(cs, r.dial(t, id, connections))
		}
		clients = append(clients, cs)
	}
	for lane := range historyLanes {
		rng := rand.New(rand.NewPCG(r.rng.Uint64(), uint64(lane)))
		all.Go(func() {
			for ctx.Err() == nil {
				if err := r.request(rng, clients[lane%len(clients)]); err != nil {
					t.Errorf("lane %d: %v", lane, err)
					return
				}
			}
		})
	}
	stop = sync.OnceFunc(func() {
		cancel()
		all.Wait()
		for _, c := range slices.Concat(clients...) {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	t.Cleanup(stop)
	return stop
}

func (r *historyRig) dial(t *testing.T, id string, connections int) *nbd.Client {
	t.Helper()
	uri, err := nbd.ParseURI(r.srv.Local().MustVolume(t, id).NBDURIs[0])
	if err != nil {
		t.Fatal(err)
	}
	c, err := nbd.Dial(t.Context(), uri, nbd.Options{Connections: connections, Attempts: 1})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// request does one thing that a client may do, and notes it. Lengths are
// spread over all magnitudes, from a sector to a mebibyte.
func (r *historyRig) request(rng *rand.Rand, clients []*nbd.Client) error {
	ctx := context.Background() // a request that is given up is not answered
	volume := rng.IntN(len(clients))
	c := clients[volume]
	n := 1 + rng.IntN(1<<rng.IntN(12))
	first := rng.IntN(historySectors - n + 1)
	if rng.IntN(4) == 0 { // often where a cluster begins or ends
		first = min(max((first&^127)+rng.IntN(3)-1, 0), historySectors-n)
	}
	off, length := int64(first)*sector, int64(n)*sector
	var flags nbd.Flags
	if rng.IntN(16) == 0 {
		flags = nbd.FUA
	}
	switch rng.IntN(20) {
	case 0:
		return c.Flush(ctx)
	case 1: // the server promises zeros of what is trimmed
		return r.noted(volume, first, n, true, func(int32) error { return c.Trim(ctx, off, length, flags) })
	case 2:
		return r.noted(volume, first, n, true, func(int32) error { return c.Zero(ctx, off, length, flags) })
	case 3:
		return r.noted(volume, first, n, true, func(int32) error { return c.Zero(ctx, off, length, flags|nbd.NoHole) })
	}
	return r.noted(volume, first, n, false, func(n int32) error {
		p := make([]byte, length)
		stamp(p, n, first)
		return c.WriteAt(ctx, p, off, flags)
	})
}

func (r *historyRig) noted(volume, first, sectors int, zeros bool, do func(n int32) error) error {
	n := r.h.send(volume, first, sectors, zeros)
	if err := do(n); err != nil {
		return err
	}
	r.h.answer(n)
	return nil
}

// take takes a point of some volumes in one call, as soon as the last job has
// ended, and checks how changes were found.
func (r *historyRig) take(t *testing.T, full bool, volumes ...int) takenPoint {
	t.Helper()
	var ids []string
	for _, v := range volumes {
		ids = append(ids, r.ids[v])
	}
	p := takenPoint{begin: r.h.tick(), ids: map[int]string{}}
	points := r.srv.API().Create(t, "history", full, ids...)
	p.end = r.h.tick()
	for i, v := range volumes {
		p.ids[v] = points[i]
		s := r.srv.API().MustSnapshot(t, points[i])
		want := "scan"
		if r.tracked[ids[i]] && !full {
			want = "tracked"
		}
		if s.Status != "available" || s.CBT != want {
			t.Errorf("point %s of %s is %s, cbt %s, want %s", s.ID, ids[i], s.Status, s.CBT, want)
		}
		r.tracked[ids[i]] = true
	}
	r.points = append(r.points, p)
	return p
}

// takeSome takes points, each of one volume or of several, without a pause.
func (r *historyRig) takeSome(t *testing.T, count int) {
	t.Helper()
	for range count {
		volumes := r.rng.Perm(len(r.ids))
		r.take(t, r.rng.IntN(12) == 0, volumes[:1+r.rng.IntN(len(volumes))]...)
	}
}

// judge compares the points that were taken since the last time with the
// history.
func (r *historyRig) judge(t *testing.T) {
	t.Helper()
	for i, p := range r.points {
		contents := map[int][]byte{}
		for v, id := range p.ids {
			contents[v] = r.export(t, id)
		}
		if err := r.h.judge(p.begin, p.end, contents); err != nil {
			t.Fatalf("point %d of %d, taken between %d and %d, is no moment of the volumes: %v", i, len(r.points), p.begin, p.end, err)
		}
	}
	r.points = nil
}

func (r *historyRig) export(t *testing.T, point string) []byte {
	t.Helper()
	content, status := r.srv.API().Export(t, "volume_snapshots", point)
	if status != http.StatusOK {
		t.Fatalf("export of %s answered %d", point, status)
	}
	return content
}

// settled takes an increment and then a full of volumes that nobody changes;
// both must be the volume byte for byte, by every way to read it.
func (r *historyRig) settled(t *testing.T) {
	t.Helper()
	var all []int
	for v := range r.ids {
		all = append(all, v)
	}
	increment, full := r.take(t, false, all...), r.take(t, true, all...)
	for v, id := range r.ids {
		want := harness.NewImage(historySectors * sector)
		c := r.dial(t, id, 4)
		got := make([]byte, want.Size())
		if err := c.ReadAt(t.Context(), got, 0); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		want.Write(got, 0)
		r.srv.API().WantContent(t, "volumes", id, want)
		r.srv.API().WantContent(t, "volume_snapshots", increment.ids[v], want)
		r.srv.API().WantContent(t, "volume_snapshots", full.ids[v], want)
	}
}

// TestLiveHistory lets clients write, trim and zero while points are taken as
// fast as their jobs end. Each point is one moment of all its volumes; see
// history. First of two new volumes, then of one that was rolled back, its
// neighbour, and a clone that is still filled from the repository.
func TestLiveHistory(t *testing.T) {
	t.Parallel()
	rounds, count := 1, 10
	if harness.Long() {
		rounds, count = 6, 40
	}
	r := newHistoryRig(t, "--max-chain", "1000", "--fill-rate", "1")
	for i := range 2 {
		r.add(t, r.srv.API().CreateVolume(t, fmt.Sprint("history", i), historySectors*sector), nil)
	}
	for range rounds {
		early := r.writeAndJudge(t, count)
		r.rollBackAndClone(t, early)
		r.writeAndJudge(t, count)
		clone := len(r.ids) - 1
		r.unused(t, r.ids[clone])
		r.srv.API().DeleteVolumes(t, r.ids[clone])
		r.ids, r.h.volumes = r.ids[:clone], r.h.volumes[:clone]
	}
	t.Logf("%d requests", len(r.h.log))
	r.srv.API().ScrubClean(t)
}

// writeAndJudge takes points beside writers, and gives one of them that has
// both of the first volumes.
func (r *historyRig) writeAndJudge(t *testing.T, count int) (both takenPoint) {
	t.Helper()
	stop := r.write(t)
	r.takeSome(t, count/2)
	both = r.take(t, false, 0, 1)
	r.takeSome(t, count/2)
	stop()
	r.settled(t)
	r.judge(t)
	return both
}

// unused waits until the server has noticed that clients have gone.
func (r *historyRig) unused(t *testing.T, id string) {
	t.Helper()
	if !harness.Poll(10*time.Second, func() bool { return r.srv.API().MustVolume(t, id).Clients == 0 }) {
		t.Fatalf("clients of %s that hung up are still connected", id)
	}
}

// rollBackAndClone gives the first volume back what a point has, and makes a
// new volume of what it has of the second.
func (r *historyRig) rollBackAndClone(t *testing.T, p takenPoint) {
	t.Helper()
	r.unused(t, r.ids[0])
	r.srv.API().Apply(t, p.ids[0])
	if err := r.h.reset(0, r.export(t, p.ids[0])); err != nil {
		t.Fatal(err)
	}
	r.add(t, r.srv.API().Clone(t, p.ids[1], "clone"), r.export(t, p.ids[1]))
}

// TestHistory: the judge of TestLiveHistory sees what is no moment.
func TestHistory(t *testing.T) {
	t.Parallel()
	sectors := func(writes ...int32) []byte {
		p := make([]byte, len(writes)*sector)
		for at, n := range writes {
			if n != 0 {
				stamp(p[at*sector:][:sector], n, at)
			}
		}
		return p
	}
	torn := sectors(1, 0, 0)
	torn[100]++
	for _, tt := range []struct {
		name    string
		content []byte
		wrong   string // "": it is a moment
	}{
		{"before all but the first", sectors(1, 1, 1), ""},
		{"after the second", sectors(2, 1, 1), ""},
		{"the zeroing is done, the write beside it not", sectors(2, 0, 1), ""},
		{"the write is done, the zeroing beside it not", sectors(2, 1, 4), ""},
		{"both are done", sectors(2, 0, 4), ""},
		{"the zeros are gone again", sectors(2, 5, 4), ""},
		{"older than the call", sectors(0, 1, 1), "sector 0 holds write 0"},
		{"an effect without its cause", sectors(1, 0, 1), "sector 1 holds write 0"},
		{"an effect without its cause, later", sectors(2, 5, 1), "sector 2 holds write 1"},
		{"newer than the call", sectors(6, 5, 4), "sector 0 holds write 6"},
		{"torn", torn, "torn"},
		{"of another place", append(sectors(2, 1), sectors(1)...), "nobody wrote there"},
	} {
		h := newHistory()
		if _, err := h.addVolume(3, nil); err != nil {
			t.Fatal(err)
		}
		h.answer(h.send(0, 0, 3, false)) // 1
		begin := h.tick()
		h.answer(h.send(0, 0, 1, false)) // 2
		zeroing := h.send(0, 1, 1, true) // 3
		beside := h.send(0, 2, 1, false) // 4
		h.answer(zeroing)
		h.answer(beside)
		h.answer(h.send(0, 1, 1, false)) // 5
		end := h.tick()
		h.answer(h.send(0, 0, 1, false)) // 6
		err := h.judge(begin, end, map[int][]byte{0: tt.content})
		if tt.wrong == "" && err != nil || tt.wrong != "" && (err == nil || !strings.Contains(err.Error(), tt.wrong)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.wrong)
		}
	}
}

// What one point shows to be overwritten no later one may show.
func TestHistoryGoesOn(t *testing.T) {
	t.Parallel()
	for _, second := range []int32{1, 2} {
		h := newHistory()
		if _, err := h.addVolume(1, nil); err != nil {
			t.Fatal(err)
		}
		one, two := h.send(0, 0, 1, false), h.send(0, 0, 1, false) // nobody can say which comes first
		h.answer(one)
		h.answer(two)
		content := func(n int32) map[int][]byte {
			p := make([]byte, sector)
			stamp(p, n, 0)
			return map[int][]byte{0: p}
		}
		if err := h.judge(h.tick(), h.tick(), content(1)); err != nil {
			t.Fatal(err)
		}
		if err := h.judge(h.tick(), h.tick(), content(second)); (err == nil) != (second == 1) {
			t.Errorf("write 1, then write %d: %v", second, err)
		}
	}
}
