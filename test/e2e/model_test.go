package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"cairn/internal/nbd"
	"cairn/test/e2e/harness"
)

// chainLimit is the most points that a chain may have by default (API.md §1).
const chainLimit = 30

const mib = 1 << 20

// modelPoint is what the model believes of one snapshot.
type modelPoint struct {
	id, volume   string
	parent, root string // parent "" on a full
	full         bool
	deleted      bool // in the recycle bin, or ceased
	ceased       bool
	content      *harness.Image
	name, desc   string
	group        string
	sizeBytes    int64  // as first seen: it never changes
	snapTime     string // as first seen
}

// modelVolume is what the model believes of one volume.
type modelVolume struct {
	id      string
	name    string
	path    string // registered: the file; "" on a managed one
	content *harness.Image
	head    string // point that the live data descends from; "" = none
	gone    bool   // deleted or forgotten; its points live on
}

// world is the model: volumes and points as API.md says they behave, written
// without a look at the product's own rules.
type world struct {
	srv    *harness.Server
	dir    string // where registered files lie, outside the data folder
	limit  int    // points of a chain; 0 = chainLimit
	vols   []*modelVolume
	points []*modelPoint // oldest first
	made   int           // counts names
}

func (w *world) api() *harness.Client { return w.srv.API() }

func (w *world) vol(id string) *modelVolume {
	for _, v := range w.vols {
		if v.id == id {
			return v
		}
	}
	return nil
}

func (w *world) point(id string) *modelPoint {
	for _, p := range w.points {
		if p.id == id {
			return p
		}
	}
	return nil
}

// liveVols are the volumes that can be used.
func (w *world) liveVols() []*modelVolume {
	var out []*modelVolume
	for _, v := range w.vols {
		if !v.gone {
			out = append(out, v)
		}
	}
	return out
}

// livePoints are the points that must restore; volume "" = of all.
func (w *world) livePoints(volume string) []*modelPoint {
	var out []*modelPoint
	for _, p := range w.points {
		if !p.deleted && (volume == "" || p.volume == volume) {
			out = append(out, p)
		}
	}
	return out
}

// register makes a file with the content and registers it.
func (w *world) register(t harness.TB, content *harness.Image) *modelVolume {
	t.Helper()
	w.made++
	name := fmt.Sprintf("disk-%d", w.made)
	f, err := os.CreateTemp(w.dir, name+"-*.raw")
	if err != nil {
		t.Fatalf("make a file for %s: %v", name, err)
	}
	path := f.Name()
	if err := errors.Join(f.Close(), content.WriteFile(path)); err != nil {
		t.Fatalf("make %s: %v", name, err)
	}
	row := w.srv.Local().Register(t, name, path)
	v := &modelVolume{id: row.ID, name: name, path: path, content: content.Clone()}
	w.vols = append(w.vols, v)
	return v
}

// importVolume makes a managed volume with the content.
func (w *world) importVolume(t harness.TB, content *harness.Image) *modelVolume {
	t.Helper()
	w.made++
	name := fmt.Sprintf("managed-%d", w.made)
	v := &modelVolume{id: w.api().Import(t, name, content), name: name, content: content.Clone()}
	w.vols = append(w.vols, v)
	return v
}

// edit changes a registered volume as its owner would.
func (v *modelVolume) edit(t harness.TB, e harness.Edit) {
	t.Helper()
	if err := e.ApplyFile(v.path); err != nil {
		t.Fatalf("edit %+v of %s: %v", e, v.name, err)
	}
	v.content.Apply(e)
}

// edit changes a volume as its owner would: a registered one's file, a managed
// one as its client.
func (w *world) edit(t harness.TB, v *modelVolume, edits ...harness.Edit) {
	t.Helper()
	if v.path == "" {
		w.editAsClient(t, v, edits)
		return
	}
	for _, e := range edits {
		v.edit(t, e)
	}
}

// editAsClient trims what an edit discards; zeros are asked for as such, with
// and without holes, or written.
func (w *world) editAsClient(t harness.TB, v *modelVolume, edits []harness.Edit) {
	t.Helper()
	ctx := context.Background()
	c := dialVolume(ctx, t, w.srv, v.id)
	for _, e := range edits {
		var err error
		switch {
		case e.Kind == harness.Punch:
			err = c.Trim(ctx, e.Off, e.Len, 0)
		case e.Kind == harness.WriteZeros && e.Seed%4 == 0:
			err = c.Zero(ctx, e.Off, e.Len, 0)
		case e.Kind == harness.WriteZeros && e.Seed%4 == 1:
			err = c.Zero(ctx, e.Off, e.Len, nbd.NoHole)
		default:
			err = c.WriteAt(ctx, e.Bytes(), e.Off, 0)
		}
		if err != nil {
			t.Fatalf("edit %+v of %s: %v", e, v.name, err)
		}
		v.content.Apply(e)
	}
	if err := c.Close(); err != nil {
		t.Fatalf("disconnect from %s: %v", v.name, err)
	}
}

// grow makes a volume larger: a registered one by its owner, a managed one
// through the API.
func (w *world) grow(t harness.TB, v *modelVolume, size int64) {
	t.Helper()
	if v.path != "" {
		if err := os.Truncate(v.path, size); err != nil {
			t.Fatalf("grow %s: %v", v.name, err)
		}
	} else {
		w.api().OK(t, w.api().Send(t, http.MethodPost, "volumes/resize",
			map[string]any{"volumes": []string{v.id}, "size_bytes": size}).Begin(t))
	}
	v.content = v.content.Resized(size)
}

// record enters the points that a create call made. moments holds the
// content that each volume had at the instant.
func (w *world) record(t harness.TB, name string, wantFull bool, vols []*modelVolume, ids []string, moments []*harness.Image) {
	t.Helper()
	for i, v := range vols {
		row := w.api().MustSnapshot(t, ids[i])
		p := &modelPoint{id: ids[i], volume: v.id, content: moments[i], name: name,
			group: row.GroupID, sizeBytes: row.SizeBytes, snapTime: row.SnapshotTime}
		p.full, p.parent, p.root = w.expectPlace(v, wantFull, moments[i].Size(), p.id)
		w.points = append(w.points, p)
		v.head = p.id
	}
}

// expectPlace says where API.md §1 puts the next point of a volume.
func (w *world) expectPlace(v *modelVolume, wantFull bool, size int64, id string) (full bool, parent, root string) {
	head := w.point(v.head)
	if wantFull || head == nil || head.deleted || head.content.Size() != size {
		return true, "", id
	}
	members := 0
	for _, p := range w.livePoints(v.id) {
		if p.root == head.root {
			members++
		}
	}
	limit := w.limit
	if limit == 0 {
		limit = chainLimit
	}
	if members >= limit {
		return true, "", id
	}
	return false, head.id, head.root
}

// create takes a point of each volume at one instant.
func (w *world) create(t harness.TB, full bool, vols ...*modelVolume) {
	t.Helper()
	w.made++
	name := fmt.Sprintf("point-%d", w.made)
	ids, moments := make([]string, len(vols)), make([]*harness.Image, len(vols))
	for i, v := range vols {
		ids[i], moments[i] = v.id, v.content.Clone()
	}
	made := w.api().Create(t, name, full, ids...)
	w.record(t, name, full, vols, made, moments)
}

// apply rolls the points' volumes back.
func (w *world) apply(t harness.TB, points ...*modelPoint) {
	t.Helper()
	ids := make([]string, len(points))
	for i, p := range points {
		ids[i] = p.id
	}
	w.api().Apply(t, ids...)
	w.applied(points...)
}

// applied enters what an apply does to the model.
func (w *world) applied(points ...*modelPoint) {
	for _, p := range points {
		v := w.vol(p.volume)
		v.content = p.content.Resized(v.content.Size())
		v.head = p.id
	}
}

// clone makes a volume from a point.
func (w *world) clone(t harness.TB, p *modelPoint) *modelVolume {
	t.Helper()
	w.made++
	name := fmt.Sprintf("clone-%d", w.made)
	v := &modelVolume{id: w.api().Clone(t, p.id, name), name: name, content: p.content.Clone()}
	w.vols = append(w.vols, v)
	return v
}

// family is the points and all their descendants that are still live.
func (w *world) family(points ...*modelPoint) []*modelPoint {
	doomed := slices.Clone(points)
	for i := 0; i < len(doomed); i++ {
		for _, p := range w.livePoints("") {
			if p.parent == doomed[i].id && !slices.Contains(doomed, p) {
				doomed = append(doomed, p)
			}
		}
	}
	return doomed
}

// remove deletes points with their descendants.
func (w *world) remove(t harness.TB, points ...*modelPoint) {
	t.Helper()
	ids := make([]string, len(points))
	for i, p := range points {
		ids[i] = p.id
	}
	w.api().DeleteSnapshots(t, ids...)
	w.removed(points...)
}

// removed enters what a delete does to the model.
func (w *world) removed(points ...*modelPoint) {
	for _, p := range w.family(points...) {
		p.deleted = true
	}
	for _, v := range w.vols {
		for h := w.point(v.head); h != nil && h.deleted; h = w.point(v.head) {
			v.head = h.parent
		}
	}
}

// forget deletes a volume. Its points stay, without a head.
func (w *world) forget(t harness.TB, v *modelVolume) {
	t.Helper()
	w.api().DeleteVolumes(t, v.id)
	v.gone, v.head = true, ""
	if v.path != "" {
		v.content.WantFile(t, v.path) // forgetting never touches the file
	}
}

// checkRows compares every row with the model. Volumes that are gone and left
// no point, of which a history makes hundreds, are looked at in one listing of
// all: what others do to the server meanwhile may shift its pages, so that it
// proves nothing of the rest.
func (w *world) checkRows(t harness.TB) {
	t.Helper()
	volumes := map[string]harness.Volume{}
	for _, r := range w.listVolumes(t) {
		volumes[r.ID] = r
	}
	points := map[string][]*modelPoint{}
	for _, p := range w.points {
		points[p.volume] = append(points[p.volume], p)
	}
	for _, v := range w.vols {
		if row, listed := volumes[v.id]; v.gone && len(points[v.id]) == 0 {
			v.checkVolume(t, row, listed)
			continue
		}
		rows := w.api().Volumes(t, url.Values{"volumes": {v.id}})
		if len(rows) == 0 {
			rows = append(rows, harness.Volume{})
		}
		v.checkVolume(t, rows[0], rows[0].ID == v.id)
		w.checkPoints(t, v, points[v.id], w.api().Snapshots(t, url.Values{"resource_id": {v.id}, "status": {harness.AllStatuses}}))
		shown := harness.IDs(w.api().Snapshots(t, url.Values{"resource_id": {v.id}}))
		if want := ids(w.livePoints(v.id)); !slices.Equal(shown, want) {
			t.Fatalf("%s lists %v without a status, want only the live ones %v", v.name, shown, want)
		}
	}
}

// checkPoints compares all rows of a volume's points with those of the model.
func (w *world) checkPoints(t harness.TB, v *modelVolume, points []*modelPoint, rows []harness.Snapshot) {
	t.Helper()
	known := map[string]harness.Snapshot{}
	for _, r := range rows {
		known[r.ID] = r
	}
	for _, p := range points {
		r, ok := known[p.id]
		if !ok {
			t.Fatalf("%s of %s is not listed any more", p.id, v.name)
		}
		delete(known, p.id)
		if diff := w.rowDiff(p, r); diff != "" {
			t.Fatalf("%s (%s of %s): %s\nrow: %+v", p.id, p.name, v.name, diff, r)
		}
	}
	for id, r := range known {
		if r.Status != "ceased" {
			t.Fatalf("%s of %s is listed as %s, but nobody made it: %+v", id, v.name, r.Status, r)
		}
	}
}

// checkVolume compares a volume's row with the model.
func (v *modelVolume) checkVolume(t harness.TB, row harness.Volume, listed bool) {
	t.Helper()
	if v.gone {
		if listed && row.Status != "deleted" && row.Status != "ceased" {
			t.Fatalf("volume %s was deleted, but is %s", v.name, row.Status)
		}
		return
	}
	if !listed || row.Status != "available" || row.Transition != "" || row.MixedJob != "" {
		t.Fatalf("volume %s: listed %v, row %+v, want one that is available and in no transition", v.name, listed, row)
	}
	if v.path == "" && row.SizeBytes != v.content.Size() {
		t.Fatalf("volume %s: size_bytes %d, want %d", v.name, row.SizeBytes, v.content.Size())
	}
}

// rowDiff says how a row differs from the model; "" = it does not.
func (w *world) rowDiff(p *modelPoint, r harness.Snapshot) string {
	v := w.vol(p.volume)
	var diff []string
	want := func(what string, got, want any) {
		if got != want {
			diff = append(diff, fmt.Sprintf("%s is %v, want %v", what, got, want))
		}
	}
	status, parent, kind := "available", p.parent, "IS_INCREMENTAL"
	if p.deleted {
		status = "deleted"
	}
	if p.ceased {
		status = "ceased"
	}
	if p.full {
		parent, kind = "self", "IS_FULL"
	}
	want("status", r.Status, status)
	want("transition_status", r.Transition, "")
	want("snapshot_type", r.Type, kind)
	want("parent_id", r.ParentID, parent)
	want("root_id", r.RootID, p.root)
	want("is_head", r.IsHead, flag(v.head == p.id))
	want("is_taken", r.IsTaken, 1)
	want("snapshot_name", r.Name, p.name)
	want("description", r.Description, p.desc)
	want("group_id", r.GroupID, p.group)
	want("size_bytes", r.SizeBytes, p.sizeBytes)
	want("size", r.Size, megabytes(p.sizeBytes))
	want("virtual_size", r.VirtualSize, p.content.Size())
	want("snapshot_time", r.SnapshotTime, p.snapTime)
	want("resource_id", r.Resource.ID, p.volume)
	want("resource_type", r.Resource.Type, "volume")
	if !p.deleted {
		w.chainDiff(p, r, want)
	}
	return strings.Join(diff, "; ")
}

// chainDiff checks what a full says of its chain.
func (w *world) chainDiff(p *modelPoint, r harness.Snapshot, want func(what string, got, want any)) {
	if !p.full {
		want("head_chain", r.HeadChain, 0)
		want("total_size", r.TotalSize, 0)
		want("total_count", r.TotalCount, 0)
		want("lastest_snapshot_time", r.LatestSnapshot, p.snapTime)
		return
	}
	head := w.point(w.vol(p.volume).head)
	count, sum, latest := 0, int64(0), ""
	for _, q := range w.livePoints(p.volume) {
		if q.root == p.id {
			count, sum, latest = count+1, sum+q.sizeBytes, max(latest, q.snapTime)
		}
	}
	want("head_chain", r.HeadChain, flag(head != nil && head.root == p.id))
	want("total_size", r.TotalSize, megabytes(sum))
	want("total_count", r.TotalCount, count)
	want("lastest_snapshot_time", r.LatestSnapshot, latest)
}

// checkContent exports volumes and points and compares every byte.
func (w *world) checkContent(t harness.TB) {
	t.Helper()
	for _, v := range w.liveVols() {
		w.wantVolume(t, v)
	}
	for _, p := range w.livePoints("") {
		w.api().WantContent(t, "volume_snapshots", p.id, p.content)
	}
}

func ids(points []*modelPoint) []string {
	out := make([]string, len(points))
	for i, p := range points {
		out[i] = p.id
	}
	slices.Sort(out)
	return out
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

func megabytes(n int64) int { return int((n + mib - 1) / mib) }
