package crash_test

import (
	"errors"
	"io"
	"os"
	"slices"
	"sync"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/mem"
	"cairn/internal/job"
	"cairn/internal/service"
)

// history is a few operations. base brings the world into the state before
// them, when nothing is broken yet.
type history struct {
	name    string
	reflink bool // instants are durable
	base    func(h *hand)
	act     func(h *hand)
}

const (
	kib = 1 << 10
	mib = 1 << 20
)

// histories are the canonical ones. Volumes are of 1 MiB but where nodes are to
// fill packs of their own.
func histories() []history {
	return append(append(createHistories(), pruneHistories()...), []history{
		{name: "apply", base: twoPoints, act: func(h *hand) { h.apply(false, 0) }},
		{name: "apply a group", base: groupOfTwo, act: func(h *hand) {
			h.apply(false, 0, 1)
			h.take(false, 0, 1)
		}},
		{name: "apply, interrupted, and again", base: twoPoints, act: interrupted},
		{name: "clone", base: twoPoints, act: func(h *hand) { h.clone(1) }},
		{name: "delete", base: twoPoints, act: func(h *hand) { h.delete(0) }},
		{name: "delete and undelete", base: twoPoints, act: func(h *hand) {
			h.delete(1)
			h.undelete(1)
			h.delete(0)
			h.undelete(0)
		}},
		{name: "delete and end for good", base: twoPoints, act: func(h *hand) {
			h.delete(1)
			h.emptyBin()
		}},
		{name: "scrub", base: twoPoints, act: func(h *hand) { h.scrub(false) }},
		{name: "repair from the second copy", base: copyLost, act: func(h *hand) { h.scrub(true) }},
		{name: "increment and clone beside a lost copy", base: copyLost, act: func(h *hand) {
			h.take(false, 0)
			h.clone(0)
		}},
		{name: "repair from the same chunks elsewhere", base: chunksTwice, act: func(h *hand) { h.scrub(true) }},
		{name: "import and delete the volume", base: empty, act: func(h *hand) {
			content := newImage(300*kib + 512)
			content.noise(7, 10*kib, 200*kib)
			h.imported(content)
			h.take(false, 0)
			h.dropVolume(0)
		}},
		{name: "resize, and a full because of the size", base: twoPoints, act: func(h *hand) {
			h.resize(0, mib+512*kib)
			h.write(0, noise(9, mib, 100*kib))
			h.take(false, 0)
		}},
		{name: "rename", base: twoPoints, act: func(h *hand) {
			h.rename(h.vols[0], "another volume")
			h.rename(h.point(0), "another point")
		}},
		{name: "register, and a point", base: empty, act: func(h *hand) {
			content := newImage(mib)
			content.noise(3, 0, 40*kib)
			h.device("/srv/device", content)
			h.take(false, 0)
		}},
		{name: "export while a delete is refused", base: twoPoints, act: func(h *hand) {
			end := h.stream(1, io.Discard)
			j, request, ok := h.ask("delete a pinned point", true, binned, func(o service.Origin) (job.Job, error) {
				return h.p.DeleteSnapshots(ctx, h.set(o, []int{1}))
			})
			if ok && h.strict {
				h.failed("a point was deleted while it was exported")
			} else if ok {
				h.wait(j, request) // the export could not begin
			}
			end()
			h.delete(1)
		}},
	}...)
}

func createHistories() []history {
	return []history{
		{name: "the first start", base: nil, act: func(h *hand) {
			h.managed(mib)
			h.write(0, noise(1, 0, 40*kib))
			h.take(true, 0)
		}},
		{name: "full", base: oneVolume, act: func(h *hand) { h.take(true, 0) }},
		{name: "full of zeros", base: empty, act: func(h *hand) {
			h.managed(mib)
			h.take(true, 0)
		}},
		{name: "incremental", base: onePoint, act: func(h *hand) {
			h.write(0, noise(2, 100*kib, 300*kib))
			h.take(false, 0)
		}},
		{name: "small increment", base: onePoint, act: func(h *hand) {
			h.write(0, noise(2, 100*kib, 10*kib))
			h.take(false, 0)
		}},
		{name: "increment without a change", base: onePoint, act: func(h *hand) { h.take(false, 0) }},
		{name: "full of chunks that are there", base: onePoint, act: func(h *hand) {
			h.managed(mib)
			h.write(1, noise(1, 0, 512*kib))
			h.take(true, 1)
		}},
		{name: "group of a managed and a registered volume", base: func(h *hand) {
			onePoint(h)
			content := newImage(mib)
			content.noise(3, 0, 300*kib)
			h.device("/srv/device", content)
		}, act: func(h *hand) {
			h.write(0, noise(2, 200*kib, 20*kib))
			h.take(false, 0, 1)
		}},
		{name: "group by reflink, written to meanwhile", reflink: true, base: groupOfTwo, act: func(h *hand) {
			h.write(0, noise(21, 0, 200*kib))
			h.write(1, noise(22, 0, 20*kib))
			h.meanwhile(func() { h.write(1, noise(23, 0, 30*kib)) })
			h.take(false, 0, 1)
		}},
		{name: "create that notices a change", base: onePoint, act: func(h *hand) {
			h.write(0, noise(2, 0, 300*kib))
			h.meanwhile(func() { h.write(0, noise(5, 600*kib, 4*kib)) })
			if j, request, ok := h.taking(false, true, 0); ok {
				h.wait(j, request)
			}
		}},
		{name: "create that is cancelled", base: onePoint, act: cancelled},
		{name: "nodes in packs of their own", base: wide, act: func(h *hand) { h.take(true, 0) }},
	}
}

func empty(*hand) {}

func oneVolume(h *hand) {
	h.managed(mib)
	h.write(0, noise(1, 0, 512*kib))
}

func onePoint(h *hand) {
	oneVolume(h)
	h.take(true, 0)
}

// twoPoints is a full, an increment and a volume that differs from both.
func twoPoints(h *hand) {
	onePoint(h)
	h.write(0, noise(2, 256*kib, 300*kib))
	h.take(false, 0)
	h.write(0, noise(3, 0, 70*kib))
	h.write(0, func(m *image) {
		if err := m.zero(300*kib, 100*kib); err != nil {
			h.t.Fatal(err)
		}
	})
}

func groupOfTwo(h *hand) {
	oneVolume(h)
	h.managed(mib / 2)
	h.write(1, noise(11, 0, 300*kib))
	h.take(true, 0, 1)
	h.write(0, noise(12, 0, 80*kib))
	h.write(1, noise(13, 64*kib, 10*kib))
}

// copyLost is a point one of whose manifest's copies is damaged, and another
// is gone.
func copyLost(h *hand) {
	twoPoints(h)
	names := h.blobs("point/")
	h.damage(names[0])
	if err := h.p.w.blobs.Delete(ctx, names[3]); err != nil {
		h.t.Fatal(err)
	}
}

// chunksTwice are two points of one content whose chunks are stored twice,
// because the index was lost in between, and once are damaged.
func chunksTwice(h *hand) {
	onePoint(h)
	w, first := h.p.w, h.blobs("data/")
	h.settle()
	h.p.stop()
	if err := os.RemoveAll(w.index()); err != nil {
		h.t.Fatal(err)
	}
	h.start(w)
	h.managed(mib)
	h.write(1, noise(1, 0, 512*kib))
	h.take(true, 1)
	h.damage(first[0])
}

// blobs lists the blobs of a prefix.
func (h *hand) blobs(prefix string) (names []string) {
	h.t.Helper()
	err := h.p.w.blobs.List(ctx, prefix, func(i blobstore.Info) error {
		names = append(names, i.Name)
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

// damage flips a byte in the first record of a pack.
func (h *hand) damage(name string) {
	h.t.Helper()
	h.story.damage = true
	err := h.p.w.blobs.(*mem.Store).Damage(name, func(b []byte) []byte { b[300] ^= 1; return b })
	if err != nil {
		h.t.Fatal(err)
	}
}

// wide is a volume with so many leaves that their nodes fill packs of their own.
func wide(h *hand) {
	h.managed(90 * mib)
	h.write(0, func(m *image) {
		for leaf := range int64(45) {
			m.noise(uint64(leaf), leaf*2*mib, 600)
		}
	})
}

// meanwhile does something once, in the middle of the next capture.
func (h *hand) meanwhile(do func()) {
	var once sync.Once
	h.p.w.disk.onRead = func(string) { once.Do(do) }
}

// beforeCommit does something once, when the next points are all stored and
// not committed.
func (h *hand) beforeCommit(do func()) {
	var once sync.Once
	h.p.w.disk.onCheck = func(string) { once.Do(do) }
}

func interrupted(h *hand) {
	writes := 0
	h.p.w.disk.onWrite = func(string) error {
		if writes++; writes == 2 {
			return errors.New("the device is gone")
		}
		return nil
	}
	h.apply(true, 1)
	h.p.w.disk.onWrite = nil
	h.apply(false, 0)
}

// cancelled cancels a create in the middle of its capture.
func cancelled(h *hand) {
	h.write(0, noise(2, 0, 400*kib))
	ready := make(chan string, 1)
	h.meanwhile(func() {
		id := <-ready
		if id == "" {
			return
		}
		if _, err := h.p.CancelJob(ctx, id); err != nil && h.strict {
			h.failed("cancel: %v", err)
		}
	})
	j, request, ok := h.taking(false, true, 0)
	ready <- j.ID
	if ok {
		h.wait(j, request)
	}
}
