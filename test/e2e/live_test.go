package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/internal/nbd"
	"cairn/test/e2e/harness"
)

const (
	livePage    = 4096
	livePages   = 6000 // of the volume, so that it ends within a cluster
	liveClients = 4
)

// liveRig is a server with one managed volume, and what its pages may hold.
// Every page holds a number, so that each says which write it is of.
type liveRig struct {
	srv  *harness.Server
	id   string
	rng  *rand.Rand
	last uint32 // number of the last write

	mu    sync.Mutex
	holds [livePages]uint32 // the last acknowledged write
	maybe [livePages]uint32 // one that was not answered; 0: none
}

func newLiveRig(t *testing.T, extra ...string) *liveRig {
	t.Helper()
	l := &liveRig{srv: serve(t, extra...), rng: harness.Rand(harness.Seed(t))}
	l.id = l.srv.API().CreateVolume(t, "live", livePages*livePage)
	return l
}

func (l *liveRig) dial(t *testing.T, volume string) *nbd.Client {
	t.Helper()
	return dialVolume(t.Context(), t, l.srv, volume)
}

// dialVolume connects as a program of this host would.
func dialVolume(ctx context.Context, t harness.TB, srv *harness.Server, volume string) *nbd.Client {
	t.Helper()
	return dialExport(ctx, t, func() []string { return srv.Local().MustVolume(t, volume).NBDURIs })
}

// dialExport connects to the first URI that there is, in time.
func dialExport(ctx context.Context, t harness.TB, uris func() []string) *nbd.Client {
	t.Helper()
	var c *nbd.Client
	// It takes clients within 2 s of a start.
	if !harness.Poll(10*time.Second, func() bool {
		all := uris()
		if len(all) == 0 {
			return false
		}
		uri, err := nbd.ParseURI(all[0])
		if err != nil {
			t.Fatalf("%v", err)
		}
		c, err = nbd.Dial(ctx, uri, nbd.Options{Attempts: 1})
		return err == nil
	}) {
		t.Fatalf("nobody takes clients")
	}
	return c
}

func numbered(n uint32) []byte {
	p := make([]byte, livePage)
	for i := 0; i < len(p); i += 4 {
		binary.LittleEndian.PutUint32(p[i:], n)
	}
	return p
}

// write lets clients write to pages of their own until they fail or are
// stopped.
func (l *liveRig) write(t *testing.T, c *nbd.Client) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for w := range liveClients {
		rng := rand.New(rand.NewPCG(l.rng.Uint64(), uint64(w)))
		all.Go(func() {
			for ctx.Err() == nil {
				page := rng.IntN(livePages/liveClients)*liveClients + w
				l.mu.Lock()
				l.last++
				n := l.last
				l.maybe[page] = n
				l.mu.Unlock()
				var flags nbd.Flags
				if rng.IntN(20) == 0 {
					flags = nbd.FUA
				}
				// Not with ctx: a write that is given up is not answered.
				if err := c.WriteAt(context.Background(), numbered(n), int64(page)*livePage, flags); err != nil {
					return
				}
				l.mu.Lock()
				l.holds[page], l.maybe[page] = n, 0
				l.mu.Unlock()
			}
		})
	}
	return func() {
		cancel()
		all.Wait()
	}
}

// settle reads the whole volume, fails unless each page holds what it may, and
// takes that for the truth from now on.
func (l *liveRig) settle(t *testing.T, c *nbd.Client) *harness.Image {
	t.Helper()
	got := make([]byte, livePages*livePage)
	if err := c.ReadAt(t.Context(), got, 0); err != nil {
		t.Fatalf("read the volume: %v", err)
	}
	m := harness.NewImage(livePages * livePage)
	for page := range livePages {
		p := got[page*livePage:][:livePage]
		n := binary.LittleEndian.Uint32(p)
		if string(p) != string(numbered(n)) {
			t.Fatalf("page %d is torn", page)
		}
		if n != l.holds[page] && (l.maybe[page] == 0 || n != l.maybe[page]) {
			t.Fatalf("page %d holds write %d, but %d was acknowledged and %d under way", page, n, l.holds[page], l.maybe[page])
		}
		l.holds[page], l.maybe[page] = n, 0
		if n != 0 {
			m.Write(p, int64(page)*livePage)
		}
	}
	return m
}

// TestLiveKill kills the server with -9 while clients write and points are
// taken, rolled back to and cloned. No acknowledged write is ever lost, every
// point taken afterwards is what the volume holds, whatever tracking knows,
// and rollbacks and clones end up whole.
func TestLiveKill(t *testing.T) {
	t.Parallel()
	rounds := 20
	if harness.Long() {
		rounds = 200
	}
	l := newLiveRig(t, "--fill-rate", "20")
	points := map[string]*harness.Image{}
	var ids []string
	tracked := 0
	for round := range rounds {
		c := l.dial(t, l.id)
		stop := l.write(t, c)
		time.Sleep(time.Duration(l.rng.IntN(60)) * time.Millisecond)
		if l.rng.IntN(2) == 0 { // the kill may come in the middle of a point
			_, _ = l.srv.API().TrySend(http.MethodPost, "volume_snapshots", map[string]any{"resources": []string{l.id}, "snapshot_name": "cut"})
			time.Sleep(time.Duration(l.rng.IntN(40)) * time.Millisecond)
		}
		l.srv.Kill(t)
		stop()
		_ = c.Close() // its server is dead
		l.srv.Run(t)
		l.srv.API().WaitAll(t)

		c = l.dial(t, l.id)
		want := l.settle(t, c)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		id := l.srv.API().Create(t, "whole", false, l.id)[0]
		l.srv.API().WantContent(t, "volume_snapshots", id, want)
		if l.srv.API().MustSnapshot(t, id).CBT == "tracked" {
			tracked++
		}
		points[id], ids = want, append(ids, id)
		switch round % 4 {
		case 1:
			l.rollBack(t, ids[l.rng.IntN(len(ids))], points)
		case 3:
			l.clone(t, ids[l.rng.IntN(len(ids))], points)
		}
	}
	t.Logf("%d rounds, %d of %d points used tracking", rounds, tracked, len(ids))
	if tracked == 0 {
		t.Error("no point used tracking")
	}
	for _, id := range ids[max(0, len(ids)-5):] {
		l.srv.API().WantContent(t, "volume_snapshots", id, points[id])
	}
	l.srv.API().ScrubClean(t)
}

// rollBack kills the server in the middle of an apply; the volume then holds
// the point, or what it held before if the call was never heard.
func (l *liveRig) rollBack(t *testing.T, id string, points map[string]*harness.Image) {
	t.Helper()
	// The server notices that clients have gone a moment later.
	if !harness.Poll(10*time.Second, func() bool { return l.srv.API().MustVolume(t, l.id).Clients == 0 }) {
		t.Fatal("clients that hung up are still connected")
	}
	r := l.srv.API().Send(t, http.MethodPost, "volume_snapshots/apply", map[string]any{"snapshots": []string{id}})
	j := r.Begin(t)
	time.Sleep(time.Duration(l.rng.IntN(15)) * time.Millisecond)
	l.srv.Kill(t)
	l.srv.Run(t)
	l.srv.API().OK(t, j)
	c := l.dial(t, l.id)
	got := make([]byte, livePages*livePage)
	if err := c.ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	if !points[id].Is(got) {
		t.Fatalf("after a rollback to %s the volume holds something else", id)
	}
	for page := range livePages {
		l.holds[page], l.maybe[page] = binary.LittleEndian.Uint32(got[page*livePage:]), 0
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// clone makes a volume of a point, writes to it at once, kills the server
// while it is filled, and compares.
func (l *liveRig) clone(t *testing.T, id string, points map[string]*harness.Image) {
	t.Helper()
	volume := l.srv.API().Clone(t, id, "clone")
	c := l.dial(t, volume)
	want := points[id].Clone()
	for range 20 {
		off := l.rng.Int64N(livePages*livePage - 700)
		p := make([]byte, 700) // parts of pages, which must be fetched first
		harness.Noise(p, l.rng.Uint64())
		if err := c.WriteAt(t.Context(), p, off, 0); err != nil {
			t.Fatal(err)
		}
		want.Write(p, off)
	}
	l.srv.Kill(t)
	_ = c.Close() // its server is dead
	l.srv.Run(t)
	l.srv.API().WantContent(t, "volumes", volume, want)
	c = l.dial(t, volume)
	got := make([]byte, livePages*livePage)
	if err := c.ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	if at := want.Differs(bytes.NewReader(got)); at != nil {
		again := make([]byte, len(got))
		err := c.ReadAt(t.Context(), again, 0)
		t.Fatalf("the clone holds something else: %v; read again: %v, %v", at, want.Differs(bytes.NewReader(again)), err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if !harness.Poll(60*time.Second, func() bool {
		v := l.srv.API().MustVolume(t, volume)
		return v.MissingBytes == 0 && v.Clients == 0
	}) {
		t.Fatal("the clone was not filled, or its clients are still connected")
	}
	l.srv.API().WantContent(t, "volumes", volume, want)
	l.srv.API().DeleteVolumes(t, volume)
}

// TestLiveRefusals: what must not happen under a client, and what a client
// gets that asks for what is not there.
func TestLiveRefusals(t *testing.T) {
	t.Parallel()
	l := newLiveRig(t)
	id := l.srv.API().Create(t, "p", false, l.id)[0]
	c := l.dial(t, l.id)
	if err := c.WriteAt(t.Context(), numbered(7), 0, nbd.FUA); err != nil {
		t.Fatal(err)
	}
	apply := map[string]any{"snapshots": []string{id}}
	l.srv.API().Send(t, http.MethodPost, "volume_snapshots/apply", apply).WantError(t, 409, "1400")
	l.srv.API().Do(t, harness.Request{Method: http.MethodDelete, Path: "volumes/" + l.id}).WantError(t, 409, "1400")
	if err := c.WriteAt(t.Context(), numbered(8), livePage, 0); err != nil {
		t.Errorf("a refusal cost the client its connection: %v", err)
	}
	before := l.srv.Local().MustVolume(t, l.id).NBDURIs[0]
	apply["force"] = true
	l.srv.API().OK(t, l.srv.API().Send(t, http.MethodPost, "volume_snapshots/apply", apply).Begin(t))
	if err := c.WriteAt(t.Context(), numbered(9), 0, 0); err == nil {
		t.Error("a client writes on after a forced rollback")
	}
	_ = c.Close() // its connections have ended
	after := l.srv.Local().MustVolume(t, l.id).NBDURIs[0]
	if before == after {
		t.Errorf("the URI is %s after a forced rollback, too", after)
	}
	c = l.dial(t, l.id)
	got := make([]byte, livePages*livePage)
	if err := c.ReadAt(t.Context(), got, 0); err != nil || !harness.NewImage(livePages*livePage).Is(got) {
		t.Errorf("after the rollback: %v", err)
	}
	if err := c.WriteAt(t.Context(), numbered(1), livePages*livePage, 0); err == nil {
		t.Error("a write past the end passes")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// A point that a volume is filled from cannot be deleted before.
func TestLiveBaseStays(t *testing.T) {
	t.Parallel()
	l := newLiveRig(t, "--fill-rate", "1")
	c := l.dial(t, l.id)
	p := make([]byte, 16<<20) // 16 s at that rate
	harness.Noise(p, 1)
	if err := c.WriteAt(t.Context(), p, 0, 0); err != nil {
		t.Fatal(err)
	}
	id := l.srv.API().Create(t, "p", false, l.id)[0]
	clone := l.srv.API().Clone(t, id, "clone")
	message := l.srv.API().Do(t, harness.Request{Method: http.MethodDelete, Path: "volume_snapshots/" + id}).WantError(t, 409, "1400")
	if !strings.Contains(message, clone) {
		t.Errorf("the refusal does not name the volume: %s", message)
	}
	l.srv.API().DeleteVolumes(t, clone)
	l.srv.API().DeleteSnapshots(t, id)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}
