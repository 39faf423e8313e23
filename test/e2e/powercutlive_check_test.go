package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"

	"cairn/test/e2e/harness"
)

// held is a volume that is there after a cut, and what it holds.
type held struct {
	*liveVolume
	content []byte
}

// survives starts the server after a cut and checks everything.
func (p *livePower) survives(t harness.TB, n int, c liveCut) {
	if !p.sameBoot {
		p.newBoot(t)
	}
	// Every other time all is fetched before anybody looks.
	fill := n/2%2 == 0
	p.run(t, fillRate(fill))
	p.srv.API().WaitAll(t)
	p.noneFailed(t)
	vols := p.there(t, c, fill)
	p.pointsAre(t, n, c, vols)
	p.nextPoint(t, vols)
	if n%2 == 0 {
		p.goesOn(t, n, vols)
	}
	if n%8 == 0 {
		p.srv.API().ScrubClean(t)
	}
}

func fillRate(fast bool) int {
	if fast {
		return fastFill
	}
	return slowFill
}

func (p *livePower) noneFailed(t harness.TB) {
	t.Helper()
	var page struct {
		Jobs []harness.Job `json:"jobs"`
	}
	p.srv.API().Get(t, "jobs?status=failed&limit=5").Into(t, &page)
	for _, j := range page.Jobs {
		t.Fatalf("job %s %s failed: %s", j.ID, j.Action, j.Info)
	}
}

// there reads the volumes that must be there, as a client does.
func (p *livePower) there(t harness.TB, c liveCut, fill bool) []*held {
	t.Helper()
	var vols []*held
	for i, v := range p.vols {
		lives := v.at(c)
		if lives == nil {
			continue
		}
		if p.srv.API().MustVolume(t, v.id).MissingBytes > 0 {
			p.seen["volume not all there"]++
			if fill {
				p.filled(t, v)
				p.seen["filled after a cut"]++
			}
		}
		h := &held{v, p.read(t, v.id, len(v.lives[0].from)*sectorSize)}
		got, err := numbers(h.content)
		for k := 0; k < len(lives) && err == nil; k++ {
			wrong := lives[k].holds(got, c)
			if wrong == nil {
				break
			}
			if k == len(lives)-1 {
				err = wrong
			}
		}
		if err != nil {
			t.Fatalf("volume %d of %d, in %d possible lives: %v", i+1, len(p.vols), len(lives), err)
		}
		vols = append(vols, h)
	}
	return vols
}

// read reads a whole volume as a client does.
func (p *livePower) read(t harness.TB, id string, size int) []byte {
	t.Helper()
	c := dialVolume(context.Background(), t, p.srv, id)
	defer c.Close()
	content := make([]byte, size)
	if err := c.ReadAt(context.Background(), content, 0); err != nil {
		t.Fatalf("read volume %s: %v", id, err)
	}
	return content
}

// pointsAre looks at every fourth of the points that were taken before the cut,
// and at those under way, which show the volume as it is now if they were taken
// again.
func (p *livePower) pointsAre(t harness.TB, n int, c liveCut, vols []*held) {
	t.Helper()
	for i, q := range p.points {
		if q.mustBe > c.flushes || q.wasDone <= c.flushes && i%4 != n%4 {
			continue
		}
		content := p.export(t, q.id, len(q.holds)*sectorSize)
		got, err := numbers(content)
		if err != nil {
			t.Fatalf("%s: %v", q.what, err)
		}
		if slices.Equal(got, q.holds) {
			continue
		}
		resumed := slices.ContainsFunc(vols, func(h *held) bool { return h.id == q.v.id && bytes.Equal(h.content, content) })
		if q.wasDone <= c.flushes || !resumed {
			t.Fatalf("%s holds something else (over before the cut: %t)", q.what, q.wasDone <= c.flushes)
		}
		p.seen["job resumed"]++
	}
}

// nextPoint takes one of all volumes, which must be what they hold.
func (p *livePower) nextPoint(t harness.TB, vols []*held) []string {
	t.Helper()
	var ids []string
	for _, h := range vols {
		ids = append(ids, h.id)
	}
	made := p.srv.API().Create(t, "next", false, ids...)
	for i, id := range made {
		switch cbt := p.srv.API().MustSnapshot(t, id).CBT; cbt {
		case "tracked":
			p.seen["point tracked"]++
		default:
			p.seen["point scanned"]++
		}
		content := p.export(t, id, len(vols[i].content))
		if !bytes.Equal(content, vols[i].content) {
			t.Fatalf("the next point of volume %s is not what it holds: %s", vols[i].id, differs(content, vols[i].content))
		}
	}
	return made
}

// export reads a point of a known size.
func (p *livePower) export(t harness.TB, id string, size int) []byte {
	t.Helper()
	content := make([]byte, size)
	r := p.srv.API().Stream(t, "volume_snapshots/"+id+"/export?format=raw", func(body io.Reader) error {
		if _, err := io.ReadFull(body, content); err != nil {
			return fmt.Errorf("a point of %d bytes: %w", size, err)
		}
		if n, err := io.Copy(io.Discard, body); err != nil || n > 0 {
			return fmt.Errorf("a point of %d bytes goes on for %d: %w", size, n, err)
		}
		return nil
	})
	if r.Status != http.StatusOK {
		t.Fatalf("export of point %s: %d %s", id, r.Status, r.Body)
	}
	return content
}

// differs says where two contents of one size do.
func differs(got, want []byte) string {
	for i := range got {
		if got[i] != want[i] {
			return fmt.Sprintf("byte %d (page %d, cluster %d) is %#x, want %#x", i, i>>12, i>>16, got[i], want[i])
		}
	}
	return "nowhere"
}

// goesOn writes, kills the server in the same boot, and rolls a volume back,
// which is cut by a kill as well.
func (p *livePower) goesOn(t harness.TB, n int, vols []*held) {
	t.Helper()
	for _, h := range vols {
		p.writeOn(t, h)
	}
	p.killedAfterwards(t, vols)
	made := p.nextPoint(t, vols)
	if n%4 > 0 {
		return
	}
	i := p.r.IntN(len(vols))
	h := vols[i]
	before := bytes.Clone(h.content)
	p.writeOn(t, h)
	p.alone(t, h.liveVolume)
	p.srv.API().Apply(t, made[i])
	h.content = before
	p.writeOn(t, h)
	p.killedAfterwards(t, vols)
	p.nextPoint(t, vols)
}

// killedAfterwards kills the server. Every write was answered, and is there.
func (p *livePower) killedAfterwards(t harness.TB, vols []*held) {
	t.Helper()
	p.srv.Kill(t)
	p.run(t, fillRate(p.r.IntN(2) == 0))
	for _, h := range vols {
		if got := p.read(t, h.id, len(h.content)); !bytes.Equal(got, h.content) {
			t.Fatalf("volume %s after a kill: %s", h.id, differs(got, h.content))
		}
	}
}

// writeOn does what clients do, one after the other, so that it is known what
// the volume holds.
func (p *livePower) writeOn(t harness.TB, h *held) {
	t.Helper()
	c := dialVolume(context.Background(), t, p.srv, h.id)
	defer c.Close()
	sectors := len(h.content) / sectorSize
	ops := []op{largeOp(p.r, sectors)}
	for client := 1; client < liveClientCount; client++ {
		ops = append(ops, smallOps(p.r, sectors, client)...)
	}
	for i, o := range ops {
		number := uint32(0)
		part := h.content[o.first*sectorSize:][:o.count*sectorSize]
		if o.kind == opWrite {
			number = lastWrite.Add(1)
			powerStamp(part, uint32(o.first), number)
		} else {
			clear(part)
		}
		err := o.request(context.Background(), c, number)
		if err == nil && i == len(ops)/2 {
			err = c.Flush(context.Background())
		}
		if err != nil {
			t.Fatalf("write to volume %s: %v", h.id, err)
		}
	}
}
