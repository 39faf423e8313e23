package crash_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/internal/chain"
	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/service"
)

// hand carries out a history: it asks the process for things as a user does
// and notes what it learns in the story. What fails, it goes on from as a user
// would; only where nothing was broken (strict) must everything work.
type hand struct {
	t      testing.TB
	p      *process
	rec    *recorder
	story  *story
	strict bool
	lasts  bool        // the fault lasts until the process is stopped
	left   atomic.Bool // the product said that it left something locked or pinned
	calm   atomic.Bool // nothing is unfinished, and nothing was asked for since
	seen   atomic.Pointer[rows]
	vols   []string // volumes of the history, by number; "" if it could not be made
	pts    []string // points likewise
}

var ctx = context.Background()

// failed notes something that must never happen, whatever was broken.
func (h *hand) failed(format string, args ...any) {
	h.t.Helper()
	h.t.Errorf(format+"\nlog:\n%s", append(args, h.p.log)...)
}

func (h *hand) origin(request string) service.Origin {
	return service.Origin{Zone: zone, RequestID: request, Local: true}
}

// note notes in the story that something is about to be asked for.
func (h *hand) note(what string, mayFail bool, settle settle) (request string) {
	h.calm.Store(false)
	h.seen.Store(nil)
	return h.story.ask(what, mayFail, settle)
}

// look reads the rows, or remembers them while nothing happens.
func (h *hand) look() (*rows, bool) {
	h.t.Helper()
	if r := h.seen.Load(); r != nil {
		return r, true
	}
	r, err := h.p.read()
	if err != nil {
		h.failed("read the rows: %v", err)
		return nil, false
	}
	if h.calm.Load() {
		h.seen.Store(r)
	}
	return r, true
}

// ask submits a job and notes whether that was acknowledged. ok: it was.
// mayFail: also where nothing is broken it may be refused, or fail.
func (h *hand) ask(what string, mayFail bool, settle settle, submit func(o service.Origin) (job.Job, error)) (j job.Job, request string, ok bool) {
	h.t.Helper()
	request = h.note(what, mayFail, settle)
	j, err := submit(h.origin(request))
	if err == nil {
		h.story.accept(request)
		return j, request, true
	}
	if h.strict && !mayFail {
		h.failed("%s: %v", what, err)
	}
	if errs.Message(err) == "" {
		h.failed("%s failed without a word: %v", what, err)
	}
	return j, request, false
}

// do asks for a job and waits for its end. ok: it succeeded.
func (h *hand) do(what string, settle settle, submit func(o service.Origin) (job.Job, error)) (j job.Job, ok bool) {
	h.t.Helper()
	j, request, ok := h.ask(what, false, settle, submit)
	if !ok {
		return j, false
	}
	return h.wait(j, request)
}

// wait waits for a job's end and tells the story.
func (h *hand) wait(j job.Job, request string) (job.Job, bool) {
	h.t.Helper()
	j, ended := h.await(j)
	if !ended {
		return j, false
	}
	open := h.story.unfinished()
	mayFail := slices.ContainsFunc(open, func(d deed) bool { return d.request == request && d.mayFail })
	r := &rows{asked: map[string]*job.Job{request: &j}}
	if len(open) > 1 || !good(&j) {
		if r, ended = h.look(); !ended {
			return j, false
		}
	}
	h.rec.quietly(func() { h.story.close(request, r) })
	if h.strict && !mayFail && !good(&j) {
		h.failed("%s %s: %s", j.Action, j.Status, j.Info)
	}
	return j, good(&j)
}

// Times between two looks at what one waits for.
const (
	firstNap = time.Millisecond
	longNap  = 10 * time.Millisecond
)

// await waits until a job has ended, or the process waits for better times.
func (h *hand) await(j job.Job) (job.Job, bool) {
	h.t.Helper()
	nap := firstNap
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(nap) {
		nap = min(nap+nap/2, longNap)
		now, err := h.p.job(j.ID)
		if err != nil {
			h.failed("job %s was acknowledged and cannot be found: %v", j.ID, err)
			return j, false
		}
		if now.Status.Ended() {
			return now, true
		}
		if h.lasts && h.p.log.is(waiting) {
			return now, false
		}
	}
	h.failed("job %s %s hangs:\n%s", j.Action, j.ID, stacks())
	return j, false
}

// point is the id of the n-th point of the history; "" if it never came to be.
func (h *hand) point(n int) string {
	if n < len(h.pts) {
		return h.pts[n]
	}
	return ""
}

// --- volumes -------------------------------------------------------------

// managed makes a managed volume of zeros.
func (h *hand) managed(size int64) {
	h.t.Helper()
	j, ok := h.do("create a volume", made(newImage(size)), func(o service.Origin) (job.Job, error) {
		return h.p.CreateVolumes(ctx, service.CreateVolumes{Origin: o, Name: "volume", SizeBytes: size, Count: 1})
	})
	h.addVolume(j, ok)
}

func (h *hand) addVolume(j job.Job, ok bool) {
	id := ""
	if ok {
		id = j.ResourceIDs[0]
	}
	h.vols = append(h.vols, id)
}

// device makes a file of somebody else's and registers it.
func (h *hand) device(path string, content *image) {
	h.t.Helper()
	h.rec.quietly(func() { h.p.w.disk.put(path, content) })
	request := h.note("register", false, registered(path, content))
	v, err := h.p.RegisterVolume(ctx, service.RegisterVolume{Origin: h.origin(request), Path: path, Name: "device"})
	h.close(request)
	if err != nil && h.strict {
		h.failed("register %s: %v", path, err)
	}
	h.vols = append(h.vols, v.ID)
}

// close settles what is no job.
func (h *hand) close(request string) {
	h.t.Helper()
	r, ok := h.look()
	if !ok {
		return
	}
	h.rec.quietly(func() { h.story.close(request, r) })
}

// write lets the owner of the n-th volume write to it.
func (h *hand) write(n int, edit func(m *image)) {
	h.rec.quietly(func() {
		h.story.mu.Lock()
		defer h.story.mu.Unlock()
		if v := h.story.volumes[h.vols[n]]; v != nil {
			v.content = v.content.clone()
			edit(v.content) // what lies beyond its end is dropped
			h.p.w.disk.put(v.key, v.content)
		}
	})
}

// noise is an edit of bytes that do not compress, from a seed.
func noise(seed uint64, off, length int64) func(*image) {
	return func(m *image) { m.noise(seed, off, length) }
}

func (h *hand) resize(n int, size int64) {
	h.t.Helper()
	h.do("resize", grown(size, h.vols[n]), func(o service.Origin) (job.Job, error) {
		return h.p.ResizeVolumes(ctx, service.ResizeVolumes{Origin: o, IDs: []string{h.vols[n]}, SizeBytes: size})
	})
}

func (h *hand) imported(content *image) {
	h.t.Helper()
	b := make([]byte, content.size)
	if err := content.read(b, 0); err != nil {
		h.t.Fatal(err)
	}
	request := h.note("import", true, made(content))
	j, err := h.p.ImportVolume(ctx, service.ImportVolume{
		Origin: h.origin(request), Name: "imported", SizeBytes: content.size, Stream: service.Flat(bytes.NewReader(b), content.size),
	})
	if err != nil {
		if h.strict {
			h.failed("import: %v", err)
		}
		h.vols = append(h.vols, "")
		return
	}
	h.story.accept(request)
	j, ok := h.wait(j, request)
	if h.strict && !ok {
		h.failed("import: %s", j.Info)
	}
	h.addVolume(j, ok)
}

func (h *hand) dropVolume(n int) {
	h.t.Helper()
	h.do("delete a volume", removed(h.vols[n]), func(o service.Origin) (job.Job, error) {
		return h.p.DeleteVolumes(ctx, service.VolumeSet{Origin: o, IDs: []string{h.vols[n]}})
	})
}

// --- points --------------------------------------------------------------

func (h *hand) ids(numbers []int) []string {
	out := make([]string, len(numbers))
	for i, n := range numbers {
		out[i] = h.vols[n]
	}
	return out
}

// taking asks for points of volumes.
func (h *hand) taking(full, mayFail bool, volumes ...int) (job.Job, string, bool) {
	h.t.Helper()
	return h.ask("create", mayFail, taken, func(o service.Origin) (job.Job, error) {
		return h.p.CreateSnapshots(ctx, service.CreateSnapshots{Origin: o, Resources: h.ids(volumes), Name: "point", Full: full})
	})
}

// take takes a point of each volume.
func (h *hand) take(full bool, volumes ...int) {
	h.t.Helper()
	j, request, ok := h.taking(full, false, volumes...)
	if ok {
		j, ok = h.wait(j, request)
	}
	for i := range volumes {
		id := ""
		if ok {
			id = j.ResourceIDs[i]
		}
		h.pts = append(h.pts, id)
	}
}

// set is the points that there are of some numbers.
func (h *hand) set(o service.Origin, numbers []int) service.SnapshotSet {
	s := service.SnapshotSet{Origin: o}
	for _, n := range numbers {
		if id := h.point(n); id != "" {
			s.IDs = append(s.IDs, id)
		}
	}
	return s
}

func (h *hand) delete(points ...int) {
	h.t.Helper()
	h.do("delete", binned, func(o service.Origin) (job.Job, error) { return h.p.DeleteSnapshots(ctx, h.set(o, points)) })
}

func (h *hand) undelete(points ...int) {
	h.t.Helper()
	h.do("undelete", taken, func(o service.Origin) (job.Job, error) { return h.p.Undelete(ctx, h.set(o, points)) })
}

// shown is what a point must hold.
func (h *hand) shown(id string) *image {
	r, ok := h.look()
	if !ok {
		return nil
	}
	s, ok := r.points[id]
	if !ok {
		return nil
	}
	return h.p.w.disk.shown(s.JobID, s.ResourceID, s.SnapshotTime)
}

// apply rolls the volumes of points back.
func (h *hand) apply(mayFail bool, points ...int) {
	h.t.Helper()
	r, ok := h.look()
	if !ok {
		return
	}
	contents := map[string]*image{}
	for _, n := range points {
		if s, ok := r.points[h.point(n)]; ok {
			contents[s.ResourceID] = h.shown(s.ID)
		}
	}
	j, request, ok := h.ask("apply", mayFail, rolled(contents), func(o service.Origin) (job.Job, error) {
		return h.p.ApplySnapshots(ctx, service.ApplySnapshots{SnapshotSet: h.set(o, points)})
	})
	if ok {
		h.wait(j, request)
	}
}

func (h *hand) clone(point int) {
	h.t.Helper()
	h.cloneOf(h.point(point))
}

func (h *hand) cloneOf(id string) (job.Job, bool) {
	h.t.Helper()
	content := h.shown(id)
	if content == nil {
		content = newImage(0) // there is no such point, so there will be no volume
	}
	return h.do("clone", made(content), func(o service.Origin) (job.Job, error) {
		return h.p.CreateVolumeFromSnapshot(ctx, service.CloneSnapshot{Origin: o, Snapshot: id, VolumeName: "clone"})
	})
}

// compare exports a point and compares it with what it must hold.
func (h *hand) compare(id string, want *image) error {
	im, err := h.p.ExportSnapshot(ctx, zone, id)
	if err != nil {
		return err
	}
	d := &differ{want: want}
	err = im.WriteTo(ctx, d, service.FormatRaw)
	if err == nil {
		err = d.whole()
	}
	if cerr := im.Close(); err == nil {
		err = cerr
	}
	return err
}

// --- repository ----------------------------------------------------------

// prune prunes; empty tells whether the recycle bin is emptied first.
func (h *hand) prune(o service.PruneOptions) (job.Job, bool) {
	h.t.Helper()
	end := settle(nothing)
	if o.EmptyBin {
		end = emptied(h.story.live(chain.Deleted))
	}
	return h.do("prune", end, func(origin service.Origin) (job.Job, error) { return h.p.Prune(ctx, origin, o) })
}

func (h *hand) emptyBin() (job.Job, bool) { return h.prune(service.PruneOptions{EmptyBin: true}) }

func (h *hand) scrub(repair bool) (job.Job, bool) {
	h.t.Helper()
	return h.do("scrub", nothing, func(o service.Origin) (job.Job, error) {
		return h.p.Scrub(ctx, o, service.ScrubOptions{Repair: repair})
	})
}

func (h *hand) rename(id, name string) {
	h.t.Helper()
	request := h.note("rename", false, renamed(id, name))
	in := service.Rename{Origin: h.origin(request), IDs: []string{id}, Name: &name}
	var err error
	if strings.HasPrefix(id, "vol-") {
		err = h.p.RenameVolumes(ctx, in)
	} else {
		_, err = h.p.RenameSnapshot(ctx, in)
	}
	h.close(request)
	h.story.mu.Lock()
	defer h.story.mu.Unlock()
	if err == nil && h.story.names[id] != name || err != nil && h.strict {
		h.failed("rename %s: %v, and its row says %q", id, err, h.story.names[id])
	}
}

// stream begins to export a point and leaves the rest to whoever comes.
func (h *hand) stream(point int, half io.Writer) (end func()) {
	h.t.Helper()
	im, err := h.p.ExportSnapshot(ctx, zone, h.point(point))
	if err != nil {
		if h.strict {
			h.failed("export: %v", err)
		}
		return func() {}
	}
	if err := im.WriteTo(ctx, half, service.FormatRaw); err != nil && h.strict {
		h.failed("export: %v", err)
	}
	return func() {
		err := im.Close()
		if err != nil && h.strict {
			h.failed("end the export: %v", err)
		}
		if err != nil {
			h.left.Store(true)
		}
	}
}

// live lists the points of a status, by id.
func (s *story) live(status chain.Status) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, id := range slices.Sorted(maps.Keys(s.points)) {
		if s.points[id] == status {
			out = append(out, id)
		}
	}
	return out
}

func (d deed) String() string { return fmt.Sprintf("%s (%s)", d.what, d.request) }
