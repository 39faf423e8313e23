package crash_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"cairn/internal/blobstore"
	"cairn/internal/chain"
	"cairn/internal/job"
	"cairn/internal/service"
)

// settle waits until every job has ended, what jobs held is let go and the
// journal has all, and tells the story what became of what was asked for.
func (h *hand) settle() {
	h.t.Helper()
	var unfinished []job.Job
	var holders []string
	var err error
	nap := firstNap
	for end := time.Now().Add(patience); ; time.Sleep(nap) {
		nap = min(nap+nap/2, longNap)
		unfinished, holders, err = h.p.busy()
		if err != nil {
			h.failed("read the rows: %v", err)
			return
		}
		if len(unfinished) == 0 && len(holders) == 0 && !h.p.log.is(behind) {
			break
		}
		if time.Now().After(end) {
			h.failed("unfinished after a long time: %+v, holders %v\n%s", unfinished, holders, stacks())
			return
		}
	}
	h.calm.Store(true)
	h.tell()
}

// tell closes every open deed.
func (h *hand) tell() {
	h.t.Helper()
	open := h.story.unfinished()
	if len(open) == 0 {
		return
	}
	r, ok := h.look()
	if !ok {
		return
	}
	for _, d := range open {
		j := r.asked[d.request]
		if j == nil && d.accepted {
			h.failed("%s was answered with a job, which is gone", d)
		}
		h.story.close(d.request, r)
	}
}

// check compares all that there is with the story.
func (h *hand) check() {
	h.t.Helper()
	h.settle()
	if text := h.p.log.panicked(); text != "" {
		h.failed("the product caught a panic of its own")
	}
	r, ok := h.look()
	if !ok {
		return
	}
	h.checkJobs(r)
	h.checkPoints(r)
	h.checkChains(r)
	h.checkVolumes(r)
	for _, s := range r.active {
		h.failed("session %s is still open", s.ID)
	}
	for id, pk := range r.packs {
		// What a prune copied and gave up is the next one's to delete, if it could
		// not do so itself.
		if r.sessions[id] != service.SessionCommitted && !strings.Contains(pk.Session, ".") {
			h.failed("pack %s of a session that is %s is still there", pk.Name, r.sessions[id])
		}
	}
	h.p.w.disk.mu.Lock()
	defer h.p.w.disk.mu.Unlock()
	for hold := range h.p.w.disk.holds {
		h.failed("the instant %s is still held", hold)
	}
}

func (h *hand) checkJobs(r *rows) {
	h.t.Helper()
	for id, j := range r.jobs {
		if j.Status == job.Failed && (j.Info == "" || j.ErrorCode == 0 || j.ErrorMessage == "" || strings.Contains(j.Info, "a fault of its own")) {
			h.failed("job %s %s failed with info %q, code %d, message %q", j.Action, id, j.Info, j.ErrorCode, j.ErrorMessage)
		}
		if j.Action != job.ScrubRepository || j.Extra == "" || h.story.damage {
			continue
		}
		var report service.ScrubReport
		if err := json.Unmarshal([]byte(j.Extra), &report); err != nil {
			h.failed("the report of scrub %s: %v", id, err)
		}
		if len(report.Damage) > 0 || len(report.DamagedSnapshots) > 0 {
			h.failed("a scrub found damage where none is: %s", j.Extra)
		}
	}
}

// checkPoints: each point is in the state that the story tells of.
func (h *hand) checkPoints(r *rows) {
	h.t.Helper()
	for id, s := range r.points {
		want, known := h.story.points[id]
		switch {
		case s.Transition != "" || s.Status == chain.Pending:
			h.failed("point %s is %s, %q, although no job is unfinished", id, s.Status, s.Transition)
		case !known && s.Status != chain.Ceased:
			h.failed("point %s is %s, and nobody was told of it", id, s.Status)
		case known && s.Status != want:
			h.failed("point %s is %s, must be %s", id, s.Status, want)
		case s.Damaged && !h.story.damage:
			h.failed("point %s is marked as damaged", id)
		case s.Status == chain.Available && (!s.IsTaken || s.ManifestPack == "" || s.ManifestHash == ""):
			h.failed("point %s is available, taken %v, manifest %q", id, s.IsTaken, s.ManifestPack)
		}
		if name, ok := h.story.names[id]; ok && s.Name != name {
			h.failed("point %s is called %q, was renamed to %q", id, s.Name, name)
		}
	}
	for id, status := range h.story.points {
		if _, ok := r.points[id]; !ok && status != chain.Ceased {
			h.failed("point %s has no row", id)
		}
	}
}

// checkChains: sums, heads and groups fit the points.
func (h *hand) checkChains(r *rows) {
	h.t.Helper()
	heads, chains, groups := map[string]service.Snapshot{}, map[string][]chain.Point{}, map[string]service.Snapshot{}
	for id, s := range r.points {
		if s.IsHead {
			if _, two := heads[s.ResourceID]; two || !s.Live() {
				h.failed("head %s is %s, or one of two", id, s.Status)
			}
			heads[s.ResourceID] = s
		}
		chains[s.RootID] = append(chains[s.RootID], s.Point)
		if s.Status != chain.Available {
			continue
		}
		if other, ok := groups[s.GroupID]; ok && !other.SnapshotTime.Equal(s.SnapshotTime) {
			h.failed("points %s and %s of one call show %v and %v", id, other.ID, s.SnapshotTime, other.SnapshotTime)
		}
		groups[s.GroupID] = s
		if parent, ok := r.points[s.ParentID]; !s.Full && (!ok || parent.Status != chain.Available) {
			h.failed("point %s is available, its parent %s is %s", id, s.ParentID, parent.Status)
		}
	}
	for id, s := range r.points {
		if !s.Full || s.Status == chain.Ceased {
			continue
		}
		if want := chain.TotalsOf(chains[id]); s.TotalBytes != want.Bytes || s.TotalCount != want.Count || !s.LatestTime.Equal(want.Latest) {
			h.failed("full %s says %d bytes, %d points, %v; its chain has %+v", id, s.TotalBytes, s.TotalCount, s.LatestTime, want)
		}
		if head := heads[s.ResourceID]; s.HeadChain != (head.ID != "" && head.RootID == id) {
			h.failed("full %s has head_chain %v, the head is %s of %s", id, s.HeadChain, head.ID, head.RootID)
		}
	}
}

// checkVolumes: each volume holds what its owner or an acknowledged job put
// there, or says that it is a mixture.
func (h *hand) checkVolumes(r *rows) {
	h.t.Helper()
	for id, v := range r.volumes {
		fact := h.story.volumes[id]
		key := id
		if v.Driver == service.DriverRegistered {
			key = v.Path
		}
		there := h.p.w.disk.content(key)
		switch {
		case v.Transition != "" || v.Status != service.VolumeAvailable && v.Status != service.VolumeCeased:
			h.failed("volume %s is %s, %q, although no job is unfinished", id, v.Status, v.Transition)
		case v.Status == service.VolumeCeased && fact != nil:
			h.failed("volume %s is gone", id)
		case v.Status == service.VolumeCeased && there != nil && v.Driver == service.DriverManaged:
			h.failed("ceased volume %s has left data behind", id)
		case v.Status == service.VolumeCeased:
		case fact == nil:
			h.failed("volume %s is there, and nobody was told of it", id)
		case there == nil:
			h.failed("volume %s has no data", id)
		case v.SizeBytes != there.size && v.Driver == service.DriverManaged:
			h.failed("volume %s has %d bytes, its row says %d", id, there.size, v.SizeBytes)
		case fact.mixed && (v.MixedJob == "" || r.jobs[v.MixedJob].Status != job.Failed):
			h.failed("volume %s holds a mixture and passes as good (mark %q)", id, v.MixedJob)
		case !fact.mixed && v.MixedJob != "":
			h.failed("volume %s is marked as a mixture of job %s", id, v.MixedJob)
		case !fact.mixed && !there.equal(fact.content):
			h.failed("volume %s does not hold what was put there", id)
		}
		if name, ok := h.story.names[id]; ok && v.Name != name && v.Status != service.VolumeCeased {
			h.failed("volume %s is called %q, was renamed to %q", id, v.Name, name)
		}
	}
	for id := range h.story.volumes {
		if _, ok := r.volumes[id]; !ok {
			h.failed("volume %s has no row", id)
		}
	}
}

// readBack exports points and compares them with what their volumes held. Of
// volumes so large that this takes long, it is only some, by turns. What a
// history has damaged is repaired before.
func (h *hand) readBack(turn int) {
	h.t.Helper()
	if h.story.damage {
		if j, ok := h.scrub(true); !ok {
			h.failed("the repair: %s", j.Info)
		}
	}
	r, ok := h.look()
	if !ok {
		return
	}
	for i, id := range h.story.live(chain.Available) {
		if r.points[id].VirtualSize > large && (i+turn)%4 != 0 {
			continue
		}
		h.sameAs(r, id)
	}
}

const large = 16 << 20

func (h *hand) sameAs(r *rows, id string) {
	h.t.Helper()
	s := r.points[id]
	want := h.p.w.disk.shown(s.JobID, s.ResourceID, s.SnapshotTime)
	if want == nil {
		h.failed("point %s says that it shows %v, when nobody froze its volume", id, s.SnapshotTime)
		return
	}
	if err := h.compare(id, want); err != nil {
		h.failed("point %s does not read back: %v", id, err)
	}
}

// work shows that everything still works, by turns: a point is cloned, one
// comes back out of the bin, all volumes get new points, blocked ones are
// healed, a scrub finds nothing.
func (h *hand) work(turn int) {
	h.t.Helper()
	if bin := h.story.live(chain.Deleted); len(bin) > 0 && turn%2 == 0 {
		h.comeBack(bin[turn/2%len(bin)])
	}
	switch turn % 4 {
	case 0:
		h.newPoints()
	case 1:
		if points := h.story.live(chain.Available); len(points) > 0 {
			h.cloneOf(points[turn/4%len(points)])
		}
	case 2:
		if j, ok := h.scrub(false); !ok {
			h.failed("the scrub: %s", j.Info)
		}
	}
}

// newPoints takes a point of every volume, all at once. Mixtures get an older
// point first.
func (h *hand) newPoints() {
	h.t.Helper()
	r, ok := h.look()
	if !ok {
		return
	}
	var volumes []string
	for id, v := range h.story.volumes {
		if v.mixed {
			for _, s := range r.points {
				if s.ResourceID == id && s.Status == chain.Available {
					h.heal(id, s)
					break
				}
			}
		}
		if !h.story.volumes[id].mixed {
			volumes = append(volumes, id)
		}
	}
	if len(volumes) == 0 {
		return
	}
	h.vols = volumes
	numbers := make([]int, len(volumes))
	for i := range numbers {
		numbers[i] = i
	}
	h.take(false, numbers...)
	h.settle()
	if r, ok = h.look(); !ok {
		return
	}
	for _, id := range h.pts[len(h.pts)-len(volumes):] {
		if id != "" {
			h.sameAs(r, id)
		}
	}
}

func (h *hand) heal(id string, s service.Snapshot) {
	h.t.Helper()
	contents := map[string]*image{id: h.p.w.disk.shown(s.JobID, s.ResourceID, s.SnapshotTime)}
	h.do("apply to a mixture", rolled(contents), func(o service.Origin) (job.Job, error) {
		return h.p.ApplySnapshots(ctx, service.ApplySnapshots{SnapshotSet: service.SnapshotSet{Origin: o, IDs: []string{s.ID}}})
	})
}

// comeBack takes a point out of the recycle bin and reads it, and its
// ancestors that came along.
func (h *hand) comeBack(id string) {
	h.t.Helper()
	j, ok := h.do("undelete", taken, func(o service.Origin) (job.Job, error) {
		return h.p.Undelete(ctx, service.SnapshotSet{Origin: o, IDs: []string{id}})
	})
	if !ok {
		return
	}
	r, ok := h.look()
	if !ok {
		return
	}
	for _, id := range j.ResourceIDs {
		h.sameAs(r, id)
	}
}

// clear deletes every point and prunes: nothing may be left of the repository
// but its header, at the latest after a second prune.
func (h *hand) clear() {
	h.t.Helper()
	if points := h.story.live(chain.Available); len(points) > 0 {
		h.do("delete all", binned, func(o service.Origin) (job.Job, error) {
			return h.p.DeleteSnapshots(ctx, service.SnapshotSet{Origin: o, IDs: points})
		})
	}
	h.emptyBin()
	left := h.leftovers()
	if len(left) > 0 {
		h.emptyBin()
		left = h.leftovers()
	}
	if len(left) > 0 {
		h.failed("left of a repository without points: %s", strings.Join(left, ", "))
	}
	r, ok := h.look()
	if !ok {
		return
	}
	if len(r.packs) > 0 {
		h.failed("%d pack rows are left of a repository without points: %v", len(r.packs), slices.Collect(maps.Values(r.packs)))
	}
}

// leftovers lists the blobs that only points can need.
func (h *hand) leftovers() []string {
	h.t.Helper()
	var out []string
	err := h.p.w.blobs.List(ctx, "", func(i blobstore.Info) error {
		if folder, _, _ := strings.Cut(i.Name, "/"); folder != "header" && folder != "journal" {
			out = append(out, fmt.Sprintf("%s (%d bytes)", i.Name, i.Size))
		}
		return nil
	})
	if err != nil {
		h.failed("list the blobs: %v", err)
	}
	slices.Sort(out)
	return out
}
