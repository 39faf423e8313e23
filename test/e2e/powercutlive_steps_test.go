package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/internal/nbd"
	"cairn/test/e2e/harness"
	"cairn/test/e2e/powercut"
)

// lastWrite numbers the writes of all clients, so that none is taken for
// another.
var lastWrite atomic.Uint32

const (
	slowFill = 1  // MiB a second: a clone is not all there until its end
	fastFill = 64 // it is soon
)

// play is the life of the server whose power is cut later.
func (p *livePower) play(t *testing.T) *powercut.History {
	t.Helper()
	p.run(t, slowFill)
	if p.syncsNothing {
		takeSyncs(t, p.srv)
	}
	a := p.create(t, livePowerSize)
	writing := p.clients(t, a)
	a.after(t, 60)
	p.point(t, "point", a)
	a.after(t, 30)
	second := p.point(t, "second point", a)[0]
	a.after(t, 30)
	writing()
	p.rollBack(t, a, p.points[0], false)
	writing = p.clients(t, a)
	a.after(t, 30)
	p.point(t, "point of a volume that is not all there", a)
	b := p.clone(t, second)
	both := p.clients(t, b)
	b.after(t, 30)
	p.point(t, "points of both", a, b)
	a.after(t, 20)
	p.killed(t, slowFill, writing, both)

	writing, both = p.clients(t, a), p.clients(t, b)
	a.after(t, 20)
	p.point(t, "points after a kill", a, b)
	b.after(t, 20)
	p.killed(t, fastFill, writing, both)

	writing, both = p.clients(t, a), p.clients(t, b)
	p.filled(t, a, b)
	b.after(t, 20)
	last := p.point(t, "points of filled volumes", a, b)[1]
	p.rollBack(t, b, last, true)
	both()
	both = p.clients(t, b)
	b.after(t, 20)
	p.step(t, "stop", func(*liveStep) { p.srv.Stop(t); writing(); both() })
	p.run(t, slowFill)
	writing, both = p.clients(t, a), p.clients(t, b)
	b.after(t, 20)
	p.point(t, "points after a stop", a, b)
	writing()
	both()
	p.withoutFlushes(t, a, b)
	p.afterIdlePoints(t, a, b)
	history, err := p.disk.Finish()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range p.vols {
		v.resolve(history)
	}
	for _, q := range p.points {
		q.mustBe, q.wasDone = history.FlushesBefore(q.accepted), history.FlushesBefore(q.done)
	}
	return history
}

// withoutFlushes takes points of what clients write who never flush: tracking
// counts from what the volume may lose.
func (p *livePower) withoutFlushes(t *testing.T, a, b *liveVolume) {
	t.Helper()
	careless, too := p.clientsWho(t, a, false), p.clientsWho(t, b, false)
	b.after(t, 10)
	p.point(t, "points of what nobody flushed", a, b)
	p.step(t, "writes that nobody flushes", func(*liveStep) { b.after(t, 10) })
	careless()
	too()
}

// afterIdlePoints lets clients write after points between which nobody did: no
// region is marked then. They are killed in the end, as the server is.
func (p *livePower) afterIdlePoints(t *testing.T, a, b *liveVolume) {
	t.Helper()
	p.point(t, "first idle points", a, b)
	p.point(t, "second idle points", a, b)
	writing, both := p.clients(t, a), p.clients(t, b)
	p.step(t, "writes after idle points", func(*liveStep) { a.after(t, 10); b.after(t, 10) })
	p.srv.Kill(t)
	writing()
	both()
}

// step does one thing and notes when.
func (p *livePower) step(t *testing.T, what string, do func(s *liveStep)) liveStep {
	t.Helper()
	s := liveStep{what: what, asked: p.now(t)}
	do(&s)
	s.done = p.now(t)
	p.steps = append(p.steps, s)
	return s
}

func (p *livePower) now(t *testing.T) powercut.Position {
	t.Helper()
	at, err := p.disk.Now()
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// job asks for one and waits for it.
func (p *livePower) job(t *testing.T, what, path string, body map[string]any) liveStep {
	t.Helper()
	return p.step(t, what, func(s *liveStep) {
		s.job = p.srv.API().Send(t, http.MethodPost, path, body).Begin(t)
		s.accepted = p.now(t)
		s.job = p.srv.API().OK(t, s.job)
	})
}

func (p *livePower) create(t *testing.T, sizeBytes int64) *liveVolume {
	t.Helper()
	s := p.job(t, "create", "volumes", map[string]any{"volume_name": "live", "size_bytes": sizeBytes})
	return p.made(s, make([]uint32, sizeBytes/sectorSize))
}

// made is a volume that a job made.
func (p *livePower) made(s liveStep, from []uint32) *liveVolume {
	v := &liveVolume{id: s.job.ResourceIDs[0], disk: p.disk}
	v.begin(s, from)
	p.vols = append(p.vols, v)
	return v
}

func (p *livePower) clone(t *testing.T, from *livePoint) *liveVolume {
	t.Helper()
	s := p.job(t, "clone", "volume_snapshots/create_volume/"+from.id, map[string]any{"volume_name": "clone"})
	return p.made(s, from.holds)
}

// point takes points of volumes whose clients write on, and learns what they
// hold.
func (p *livePower) point(t *testing.T, what string, vols ...*liveVolume) []*livePoint {
	t.Helper()
	var ids []string
	var answered []int
	for _, v := range vols {
		v.mu.Lock()
		ids, answered = append(ids, v.id), append(answered, v.answered)
		v.mu.Unlock()
	}
	s := p.job(t, what, "volume_snapshots", map[string]any{"resources": ids, "snapshot_name": fmt.Sprint("point ", len(p.points))})
	out := make([]*livePoint, len(vols))
	for _, id := range s.job.ResourceIDs {
		row := p.srv.API().MustSnapshot(t, id)
		for i, v := range vols {
			if v.id != row.Resource.ID {
				continue
			}
			holds, err := numbers(p.export(t, id, v.sectors()*sectorSize))
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			v.mu.Lock()
			err = v.now().shows(holds, answered[i])
			v.mu.Unlock()
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			out[i] = &livePoint{liveStep: s, id: id, v: v, holds: holds}
		}
	}
	p.points = append(p.points, out...)
	return out
}

// rollBack rolls a volume back; with force while its clients write.
func (p *livePower) rollBack(t *testing.T, v *liveVolume, to *livePoint, force bool) {
	t.Helper()
	if !force {
		p.alone(t, v)
	}
	s := p.job(t, "rollback", "volume_snapshots/apply", map[string]any{"snapshots": []string{to.id}, "force": force})
	v.begin(s, to.holds)
}

// alone waits until the server knows that a volume's clients have gone.
func (p *livePower) alone(t harness.TB, v *liveVolume) {
	t.Helper()
	if !harness.Poll(10*time.Second, func() bool { return p.srv.API().MustVolume(t, v.id).Clients == 0 }) {
		t.Fatalf("clients that hung up are still connected")
	}
}

// filled waits until nothing of the volumes is missing.
func (p *livePower) filled(t harness.TB, vols ...*liveVolume) {
	t.Helper()
	for _, v := range vols {
		if !harness.Poll(60*time.Second, func() bool { return p.srv.API().MustVolume(t, v.id).MissingBytes == 0 }) {
			t.Fatalf("volume %s is not filled", v.id)
		}
	}
}

// killed kills the server under its clients and starts it again, in the same
// boot.
func (p *livePower) killed(t *testing.T, fillRate int, clients ...func()) {
	t.Helper()
	p.step(t, "kill", func(*liveStep) {
		p.srv.Kill(t)
		for _, gone := range clients {
			gone()
		}
		p.run(t, fillRate)
		p.srv.API().WaitAll(t)
	})
}

// clients write to a volume until stop, or until their connections end. Then
// everything is answered that ever will be.
func (p *livePower) clients(t *testing.T, v *liveVolume) (stop func()) {
	t.Helper()
	return p.clientsWho(t, v, true)
}

func (p *livePower) clientsWho(t *testing.T, v *liveVolume, flush bool) (stop func()) {
	t.Helper()
	c := dialVolume(t.Context(), t, p.srv, v.id)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for client := range liveClientCount {
		r := rand.New(rand.NewPCG(p.r.Uint64(), uint64(client)))
		all.Go(func() {
			// Not with ctx: a write that is given up is not answered.
			for ctx.Err() == nil && v.act(context.Background(), c, r, client, flush) == nil {
				v.round()
			}
		})
	}
	return func() {
		cancel()
		all.Wait()
		_ = c.Close() // its server may be dead
	}
}

// act does what one client has under way at once, and sometimes a flush.
func (v *liveVolume) act(ctx context.Context, c *nbd.Client, r *rand.Rand, client int, flush bool) error {
	ops := smallOps(r, v.sectors(), client)
	if client == 0 {
		ops = []op{largeOp(r, v.sectors())}
	}
	var g errgroup.Group
	for _, o := range ops {
		o.fua = o.fua && flush
		g.Go(func() error { return v.do(ctx, c, o) })
	}
	if err := g.Wait(); err != nil || !flush || r.IntN(3) > 0 {
		return err
	}
	return v.flush(func() error { return c.Flush(ctx) })
}

// do carries one request out and notes it.
func (v *liveVolume) do(ctx context.Context, c *nbd.Client, o op) error {
	n := uint32(0)
	if o.kind == opWrite {
		n = lastWrite.Add(1)
	}
	w, err := v.send(o.first, o.count, n)
	if err != nil {
		return err
	}
	if err := o.request(ctx, c, n); err != nil {
		return err
	}
	return v.answer(w, o.fua)
}

// request asks the server for it.
func (o op) request(ctx context.Context, c *nbd.Client, n uint32) error {
	var flags nbd.Flags
	if o.fua {
		flags = nbd.FUA
	}
	off, length := int64(o.first)*sectorSize, int64(o.count)*sectorSize
	switch o.kind {
	case opZero:
		return c.Zero(ctx, off, length, flags)
	case opTrim:
		return c.Trim(ctx, off, length, flags)
	default:
		b := make([]byte, length)
		powerStamp(b, uint32(o.first), n)
		return c.WriteAt(ctx, b, off, flags)
	}
}

// after waits until clients have done so much more.
func (v *liveVolume) after(t *testing.T, rounds int) {
	t.Helper()
	until := v.roundsDone() + rounds*liveClientCount
	if !harness.Poll(120*time.Second, func() bool { return v.roundsDone() >= until }) {
		t.Fatalf("clients of volume %s are stuck", v.id)
	}
}
