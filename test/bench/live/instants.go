package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"cairn/client"
	"cairn/internal/nbd"
)

const (
	page    = 4096
	points  = 50 // taken under writers
	clones  = 20
	writers = 4
	// pointGap is the pause between points.
	pointGap = 200 * time.Millisecond
)

// instants is what is measured of points, clones and rollbacks. All lists are
// of seconds.
type instants struct {
	calm       []float64 // a client's writes while nothing else goes on
	pauses     []float64 // of each point, how long the freeze kept writes waiting
	longest    []float64 // of each point, the longest write that overlaps its job
	pointsTook []float64 // from the call to the end of the job
	firstReads []float64 // of each clone, from the call to the first 4 KiB read
	served     []float64 // of each time that a point is served, the same
	rollback   float64   // from the call to the first 4 KiB read
	changed    float64   // the part of the volume that differed
	nothing    []float64 // a point of a volume of 1 TiB in which nothing changed
}

// measureInstants measures on a server of its own.
func (r *results) measureInstants(ctx context.Context, work string) (err error) {
	c, err := startCairn(ctx, r.conf.cairn, filepath.Join(work, "i"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	for _, step := range []struct {
		what string
		do   func(context.Context, *rig) error
	}{
		{"points under writers", r.measureFreezes},
		{"clones", r.measureClones},
		{"rollback", r.measureRollback},
		{"1 TiB, nothing changed", r.measureNothing},
		{"a machine", r.measureMachine},
	} {
		begin := time.Now()
		if err := step.do(ctx, c); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		fmt.Fprintf(os.Stderr, "%s: %.1f s\n", step.what, time.Since(begin).Seconds())
	}
	return nil
}

// connect opens a volume as a client.
func (r *rig) connect(ctx context.Context, volume string) (*nbd.Client, error) {
	text, err := r.uri(ctx, volume)
	if err != nil {
		return nil, err
	}
	return dial(ctx, text)
}

func dial(ctx context.Context, text string) (*nbd.Client, error) {
	uri, err := nbd.ParseURI(text)
	if err != nil {
		return nil, err
	}
	return nbd.Dial(ctx, uri, nbd.Options{Connections: writers})
}

// fill writes length bytes of a volume: programs and text, more or less.
func fill(ctx context.Context, c *nbd.Client, length int64) error {
	p := make([]byte, 1<<20)
	rng := rand.New(rand.NewPCG(7, 7))
	for off := int64(0); off < length; off += int64(len(p)) {
		for i := range p {
			p[i] = byte(i * i >> 7)
		}
		for at := 0; at < len(p); at += 256 { // a quarter is noise
			for i := range 64 {
				p[at+i] = byte(rng.Uint32())
			}
		}
		if err := c.WriteAt(ctx, p, off, 0); err != nil {
			return err
		}
	}
	return c.Flush(ctx)
}

// span is one write.
type span struct{ begin, end time.Time }

// write writes random pages, each writer one at a time, until ctx ends.
func write(ctx context.Context, c *nbd.Client, size int64) ([]span, error) {
	var mu sync.Mutex
	var all []span
	var failed error
	var running sync.WaitGroup
	for w := range writers {
		running.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			p := make([]byte, page)
			var mine []span
			var err error
			for err == nil && ctx.Err() == nil {
				p[0]++
				s := span{begin: time.Now()}
				err = c.WriteAt(context.WithoutCancel(ctx), p, rng.Int64N(size/page)*page, 0)
				s.end = time.Now()
				mine = append(mine, s)
			}
			mu.Lock()
			defer mu.Unlock()
			all, failed = append(all, mine...), errors.Join(failed, err)
		})
	}
	running.Wait()
	return all, failed
}

func (r *results) measureFreezes(ctx context.Context, c *rig) error {
	const size = 1 << 30
	id, err := c.newVolume(ctx, size)
	if err != nil {
		return err
	}
	n, err := c.connect(ctx, id)
	if err != nil {
		return err
	}
	if err := fill(ctx, n, size); err != nil {
		return err
	}
	if _, err := c.point(ctx, id, false); err != nil {
		return err
	}
	calm, stop := context.WithTimeout(ctx, 5*time.Second)
	spans, err := write(calm, n, size)
	stop()
	if err != nil {
		return err
	}
	for _, s := range spans {
		r.calm = append(r.calm, s.end.Sub(s.begin).Seconds())
	}
	busy, stop := context.WithCancel(ctx)
	defer stop()
	var jobs []span
	var failed error
	go func() {
		defer stop()
		for range points {
			j := span{begin: time.Now()}
			if _, failed = c.point(ctx, id, false); failed != nil {
				return
			}
			j.end = time.Now()
			jobs = append(jobs, j)
			time.Sleep(pointGap)
		}
	}()
	spans, err = write(busy, n, size)
	if err := errors.Join(err, failed, n.Close()); err != nil {
		return err
	}
	for _, j := range jobs {
		longest := 0.0
		for _, s := range spans {
			if s.begin.Before(j.end) && s.end.After(j.begin) {
				longest = max(longest, s.end.Sub(s.begin).Seconds())
			}
		}
		r.longest = append(r.longest, longest)
		r.pointsTook = append(r.pointsTook, j.end.Sub(j.begin).Seconds())
	}
	r.pauses, err = c.pauses(points)
	return err
}

// pauses reads in the server's log how long the last freezes kept writes
// waiting: from when the first had to until all could go on.
func (r *rig) pauses(count int) ([]float64, error) {
	log, err := os.ReadFile(r.log.Name())
	if err != nil {
		return nil, err
	}
	var out []float64
	for line := range strings.Lines(string(log)) {
		if !strings.Contains(line, "volumes frozen") {
			continue
		}
		_, text, _ := strings.Cut(line, "pause=")
		text, _, _ = strings.Cut(strings.TrimSpace(text), " ")
		took, err := time.ParseDuration(text)
		if err != nil {
			return nil, fmt.Errorf("the server's log has %q: %w", line, err)
		}
		out = append(out, took.Seconds())
	}
	if len(out) < count {
		return nil, fmt.Errorf("the server's log tells of %d freezes, want %d", len(out), count)
	}
	return out[len(out)-count:], nil
}

// firstRead connects and reads a page.
func (r *rig) firstRead(ctx context.Context, volume string, off int64) error {
	n, err := r.connect(ctx, volume)
	if err != nil {
		return err
	}
	return errors.Join(n.ReadAt(ctx, make([]byte, page), off), n.Close())
}

// measureServed serves a point, reads a page of it and ends that.
func (r *results) measureServed(ctx context.Context, c *rig, point string, off int64) error {
	begin := time.Now()
	e, err := c.ServeSnapshot(ctx, point)
	if err != nil {
		return err
	}
	n, err := dial(ctx, e.NBDURIs[0])
	if err != nil {
		return err
	}
	err = n.ReadAt(ctx, make([]byte, page), off)
	r.served = append(r.served, time.Since(begin).Seconds())
	if err := errors.Join(err, n.Close()); err != nil {
		return err
	}
	return c.UnserveSnapshot(ctx, point, false)
}

func (r *results) measureClones(ctx context.Context, c *rig) error {
	const size = 1 << 30
	id, err := c.newVolume(ctx, size)
	if err != nil {
		return err
	}
	n, err := c.connect(ctx, id)
	if err != nil {
		return err
	}
	if err := errors.Join(fill(ctx, n, size), n.Close()); err != nil {
		return err
	}
	p, err := c.point(ctx, id, false)
	if err != nil {
		return err
	}
	for i := range clones {
		off := int64(i) * (size / clones) &^ (page - 1)
		if err := r.measureServed(ctx, c, p, off); err != nil {
			return err
		}
		begin := time.Now()
		j, err := c.CreateVolumeFromSnapshot(ctx, p, client.CloneSnapshot{VolumeName: "clone", OnDemand: true})
		clone, err := c.one(ctx, j, err)
		if err != nil {
			return err
		}
		if err := c.firstRead(ctx, clone, off+size/clones/2&^(page-1)); err != nil {
			return err
		}
		r.firstReads = append(r.firstReads, time.Since(begin).Seconds())
		j, err = c.DeleteVolumes(ctx, clone)
		if _, err := c.ended(ctx, j, err); err != nil {
			return err
		}
	}
	return nil
}

func (r *results) measureRollback(ctx context.Context, c *rig) error {
	size := int64(r.conf.gib) << 30
	id, err := c.newVolume(ctx, size)
	if err != nil {
		return err
	}
	n, err := c.connect(ctx, id)
	if err != nil {
		return err
	}
	if err := fill(ctx, n, size); err != nil {
		return err
	}
	p, err := c.point(ctx, id, false)
	if err != nil {
		return err
	}
	// Runs of 256 KiB, as programs write.
	const run = 256 << 10
	buf := make([]byte, run)
	rng := rand.New(rand.NewPCG(3, 3))
	count := size / run / 20
	for range count {
		for i := range buf {
			buf[i] = byte(rng.Uint32())
		}
		if err := n.WriteAt(ctx, buf, rng.Int64N(size/run)*run, 0); err != nil {
			return err
		}
	}
	if err := errors.Join(n.Flush(ctx), n.Close()); err != nil {
		return err
	}
	r.changed = float64(count*run) / float64(size)
	begin := time.Now()
	j, err := c.ApplySnapshots(ctx, p)
	if _, err := c.ended(ctx, j, err); err != nil {
		return err
	}
	if err := c.firstRead(ctx, id, 0); err != nil {
		return err
	}
	r.rollback = time.Since(begin).Seconds()
	return nil
}

func (r *results) measureNothing(ctx context.Context, c *rig) error {
	id, err := c.newVolume(ctx, 1<<40)
	if err != nil {
		return err
	}
	n, err := c.connect(ctx, id)
	if err != nil {
		return err
	}
	if err := errors.Join(fill(ctx, n, 1<<30), n.Close()); err != nil {
		return err
	}
	if _, err := c.point(ctx, id, false); err != nil {
		return err
	}
	for range 10 {
		begin := time.Now()
		if _, err := c.point(ctx, id, false); err != nil {
			return err
		}
		r.nothing = append(r.nothing, time.Since(begin).Seconds())
	}
	return nil
}
