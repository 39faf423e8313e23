package metadbtest

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"cairn/internal/chain"
	"cairn/internal/errs"
	"cairn/internal/service"
)

func testVolumes(t *testing.T, s service.Store) {
	full := service.Volume{
		ID: "vol-A", Zone: "ac1", Name: "it's a \"name\" ß", Description: "two\nlines", Type: 3,
		Driver: "registered", Path: "/dev/disk '1'", Identity: "dev 8:1", SizeBytes: 123456789012,
		Status: service.VolumeInUse, Transition: "applying", CreateTime: at(1), StatusTime: at(2), MixedJob: "job-A", OnDemand: true,
	}
	update(t, s, func(tx service.Tx) error { return tx.InsertVolume(full) })
	read := func(zone, id string) (v service.Volume, err error) {
		err = s.View(t.Context(), func(tx service.Tx) error { v, err = tx.Volume(zone, id); return err })
		return v, err
	}
	got, err := read("", "vol-A")
	must(t, err)
	equal(t, "stored volume", got, full)

	_, err = read("ac2", "vol-A")
	kind(t, err, errs.NotFound, "vol-A")
	kind(t, s.Update(t.Context(), func(tx service.Tx) error { return tx.InsertVolume(full) }), errs.Exists, "vol-A")
	kind(t, s.Update(t.Context(), func(tx service.Tx) error { return tx.UpdateVolume(volume("vol-B", 0)) }), errs.NotFound, "vol-B")

	changed := volume("vol-A", 9)
	changed.Zone, changed.Type, changed.Identity = "ac2", 0, "dev 8:2"
	update(t, s, func(tx service.Tx) error { return tx.UpdateVolume(changed) })
	got, err = read("ac2", "vol-A")
	must(t, err)
	equal(t, "every column changed", got, changed)
	testIdentity(t, s)

	changed.Status = service.VolumeCeased
	update(t, s, func(tx service.Tx) error { return tx.UpdateVolume(changed) })
	_, err = read("", "vol-A")
	kind(t, err, errs.NotFound, "vol-A")
}

// testIdentity: one file or device is one volume, by identity and by path,
// until the volume is ceased.
func testIdentity(t *testing.T, s service.Store) {
	one := volume("vol-ID", 0)
	one.Driver, one.Identity, one.Path = "registered", "dev 9:9", "/srv/one.raw"
	update(t, s, func(tx service.Tx) error { return tx.InsertVolume(one) })
	lookup := func(identity, path string) (id string) {
		view(t, s, func(tx service.Tx) error {
			v, ok, err := tx.VolumeByIdentity(identity, path)
			if ok {
				id = v.ID
			}
			return err
		})
		return id
	}
	equal(t, "by identity", lookup("dev 9:9", "/other"), "vol-ID")
	equal(t, "by path", lookup("dev 1:1", "/srv/one.raw"), "vol-ID")
	equal(t, "by neither", lookup("dev 1:1", "/other"), "")
	equal(t, "nothing is not a name", lookup("", ""), "")

	for _, twin := range []service.Volume{{Identity: "dev 9:9", Path: "/srv/two.raw"}, {Identity: "dev 9:8", Path: "/srv/one.raw"}} {
		twin.ID, twin.Status = "vol-TWIN", service.VolumeAvailable
		kind(t, s.Update(t.Context(), func(tx service.Tx) error { return tx.InsertVolume(twin) }), errs.Exists, "vol-TWIN")
	}
	one.Status = service.VolumeCeased
	update(t, s, func(tx service.Tx) error { return tx.UpdateVolume(one) })
	equal(t, "ceased", lookup("dev 9:9", "/srv/one.raw"), "")
	again := one
	again.ID, again.Status = "vol-AGAIN", service.VolumeAvailable
	update(t, s, func(tx service.Tx) error { return tx.InsertVolume(again) })
	equal(t, "registered again", lookup("dev 9:9", ""), "vol-AGAIN")
}

func testVolumeList(t *testing.T, s service.Store) {
	update(t, s, func(tx service.Tx) error {
		for i, st := range []service.VolumeStatus{
			service.VolumePending, service.VolumeAvailable, service.VolumeInUse, service.VolumeDeleted, service.VolumeCeased,
		} {
			v := volume(fmt.Sprintf("vol-%d", i), i/2)
			v.Status, v.Type, v.Name = st, i%2, fmt.Sprintf("Disk %d ÄÖ_%%", i)
			must(t, tx.InsertVolume(v))
		}
		other := volume("vol-Z", 5)
		other.Zone = "ac2"
		return tx.InsertVolume(other)
	})
	one := 1
	for _, tt := range []struct {
		name  string
		f     service.VolumeFilter
		want  string
		total int
	}{
		{"all that live, newest first, then id", service.VolumeFilter{Zone: "ac1"}, "2 0 1", 3},
		{"every zone", service.VolumeFilter{}, "Z 2 0 1", 4},
		{"page", service.VolumeFilter{Zone: "ac1", Offset: 1, Limit: 1}, "0", 3},
		{"past the end", service.VolumeFilter{Zone: "ac1", Offset: 3}, "", 3},
		{"ids find every status, unknown ones are absent", service.VolumeFilter{Zone: "ac1", IDs: []string{"vol-4", "vol-1", "vol-1", "vol-X"}}, "4 1", 2},
		{"statuses", service.VolumeFilter{Zone: "ac1", Statuses: []service.VolumeStatus{service.VolumeDeleted, service.VolumePending}}, "3 0", 2},
		{"ids and statuses", service.VolumeFilter{IDs: []string{"vol-4", "vol-1"}, Statuses: []service.VolumeStatus{service.VolumeAvailable}}, "1", 1},
		{"type", service.VolumeFilter{Zone: "ac1", Type: &one}, "1", 1},
		{"search by name, any case", service.VolumeFilter{Zone: "ac1", Search: "dISK 1 äö"}, "1", 1},
		{"search by id, any case", service.VolumeFilter{Zone: "ac1", Search: "VOL-2"}, "2", 1},
		{"signs are literal", service.VolumeFilter{Zone: "ac1", Search: "_%"}, "2 0 1", 3},
		{"signs match nothing else", service.VolumeFilter{Zone: "ac1", Search: "%_"}, "", 0},
	} {
		if tt.f.Limit == 0 {
			tt.f.Limit = 10
		}
		view(t, s, func(tx service.Tx) error {
			rows, total, err := tx.Volumes(tt.f)
			ids := make([]string, len(rows))
			for i, r := range rows {
				ids[i] = strings.TrimPrefix(r.ID, "vol-")
			}
			equal(t, tt.name, strings.Join(ids, " "), tt.want)
			equal(t, tt.name+": total", total, tt.total)
			return err
		})
	}
}

func testSnapshots(t *testing.T, s service.Store) {
	full := service.Snapshot{
		Point: chain.Point{
			ID: "ss-A", ResourceID: "vol-A", ParentID: "ss-P", RootID: "ss-R", Full: false, Status: chain.Suspended,
			Damaged: true, IsHead: true, VirtualSize: 1 << 40, SizeBytes: 77, SnapshotTime: at(3),
		},
		Zone: "ac1", Name: "näme '1'", Description: "d", Transition: "deleting", CreateTime: at(1), StatusTime: at(2),
		IsTaken: true, HeadChain: true, ResourceType: "volume", ResourceName: "rn", VolumeType: 4, GroupID: "g",
		JobID: "j", Consistency: "crash", CBT: "scan", Reason: "because", ManifestPack: "ab", ManifestHash: "cd",
		TotalBytes: 5, TotalCount: 6, LatestTime: at(4), UniqueBytes: 7, UniqueKnown: true,
	}
	update(t, s, func(tx service.Tx) error { return tx.InsertSnapshot(full) })
	read := func(zone, id string) (v service.Snapshot, err error) {
		err = s.View(t.Context(), func(tx service.Tx) error { v, err = tx.Snapshot(zone, id); return err })
		return v, err
	}
	got, err := read("ac1", "ss-A")
	must(t, err)
	equal(t, "stored snapshot", got, full)
	_, err = read("ac2", "ss-A")
	kind(t, err, errs.NotFound, "ss-A")
	kind(t, s.Update(t.Context(), func(tx service.Tx) error { return tx.InsertSnapshot(full) }), errs.Exists, "ss-A")
	kind(t, s.Update(t.Context(), func(tx service.Tx) error { return tx.UpdateSnapshot(snapshot("ss-B", 0)) }), errs.NotFound, "ss-B")

	changed := snapshot("ss-A", 9)
	changed.Status = chain.Ceased
	update(t, s, func(tx service.Tx) error { return tx.UpdateSnapshot(changed) })
	got, err = read("", "ss-A")
	must(t, err)
	equal(t, "every column changed, any status found", got, changed)

	odd := snapshot("ss-C", 0)
	odd.Status = "unheard of"
	if err := s.Update(t.Context(), func(tx service.Tx) error { return tx.InsertSnapshot(odd) }); err == nil {
		t.Error("a status that does not exist was stored")
	}
}

// listIDs lists and joins what follows "ss-" in the ids.
func listIDs(t testing.TB, s service.Store, f service.SnapshotFilter) (string, int) {
	t.Helper()
	var ids []string
	var total int
	view(t, s, func(tx service.Tx) error {
		rows, n, err := tx.Snapshots(f)
		for _, r := range rows {
			ids = append(ids, strings.TrimPrefix(r.ID, "ss-"))
		}
		total = n
		return err
	})
	return strings.Join(ids, " "), total
}

type listCase struct {
	name  string
	f     service.SnapshotFilter
	want  string
	total int
}

func runListCases(t *testing.T, s service.Store, cases []listCase) {
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			if tt.f.Limit == 0 {
				tt.f.Limit = 100
			}
			ids, total := listIDs(t, s, tt.f)
			equal(t, "ids", ids, tt.want)
			equal(t, "total", total, tt.total)
		})
	}
}

func testSnapshotList(t *testing.T, s service.Store) {
	// Two chains of two resources: F1 ← i1, i2, i3 and F2 ← k1; one in ac2.
	add := func(id, resource, root string, status chain.Status, created int) service.Snapshot {
		p := snapshot("ss-"+id, created)
		p.ResourceID, p.RootID, p.Full, p.Status = resource, "ss-"+root, id == root, status
		return p
	}
	rows := []service.Snapshot{
		add("F1", "vol-A", "F1", chain.Available, 0), add("i1", "vol-A", "F1", chain.Deleted, 1),
		add("i2", "vol-A", "F1", chain.Suspended, 2), add("i3", "vol-A", "F1", chain.Pending, 2),
		add("F2", "vol-B", "F2", chain.Available, 3), add("k1", "vol-B", "F2", chain.Ceased, 4),
	}
	other := add("Z", "vol-Z", "Z", chain.Available, 2)
	other.Zone = "ac2"
	update(t, s, func(tx service.Tx) error {
		for _, r := range append(rows, other) {
			must(t, tx.InsertSnapshot(r))
		}
		return nil
	})
	yes, no := true, false
	z := "ac1"
	runListCases(t, s, []listCase{
		{"all that live, newest first, then id", service.SnapshotFilter{Zone: z}, "F2 i2 i3 F1", 4},
		{"every zone", service.SnapshotFilter{}, "F2 Z i2 i3 F1", 5},
		{"another zone", service.SnapshotFilter{Zone: "ac2"}, "Z", 1},
		{"unknown zone", service.SnapshotFilter{Zone: "ac3"}, "", 0},
		{"page", service.SnapshotFilter{Zone: z, Offset: 1, Limit: 2}, "i2 i3", 4},
		{"last page is short", service.SnapshotFilter{Zone: z, Offset: 3, Limit: 2}, "F1", 4},
		{"past the end", service.SnapshotFilter{Zone: z, Offset: 4}, "", 4},
		{"far past the end", service.SnapshotFilter{Zone: z, Offset: 1 << 62, Limit: 1 << 62}, "", 4},
		{"ids find every status, unknown ones are absent", service.SnapshotFilter{Zone: z, IDs: []string{"ss-F1", "ss-k1", "ss-i1", "ss-i1", "ss-X", "ss-Z"}}, "k1 i1 F1", 3},
		{"ids in pages", service.SnapshotFilter{Zone: z, IDs: []string{"ss-F1", "ss-k1", "ss-i1"}, Offset: 1, Limit: 1}, "i1", 3},
		{"ids and statuses", service.SnapshotFilter{Zone: z, IDs: []string{"ss-F1", "ss-k1"}, Statuses: []chain.Status{chain.Available}}, "F1", 1},
		{"resource", service.SnapshotFilter{Zone: z, ResourceID: "vol-A"}, "i2 i3 F1", 3},
		{"resource of another zone", service.SnapshotFilter{Zone: z, ResourceID: "vol-Z"}, "", 0},
		{"resource without zone", service.SnapshotFilter{ResourceID: "vol-Z"}, "Z", 1},
		{"fulls", service.SnapshotFilter{Zone: z, Full: &yes}, "F2 F1", 2},
		{"incrementals", service.SnapshotFilter{Zone: z, Full: &no}, "i2 i3", 2},
		{"one status", service.SnapshotFilter{Zone: z, Statuses: []chain.Status{chain.Deleted}}, "i1", 1},
		{"several statuses", service.SnapshotFilter{Zone: z, Statuses: []chain.Status{chain.Ceased, chain.Pending, chain.Pending}}, "k1 i3", 2},
		{"unknown status", service.SnapshotFilter{Zone: z, Statuses: []chain.Status{"odd"}}, "", 0},
		{"root: its incrementals, not itself", service.SnapshotFilter{Zone: z, RootID: "ss-F1"}, "i2 i3", 2},
		{"root and status", service.SnapshotFilter{Zone: z, RootID: "ss-F1", Statuses: []chain.Status{chain.Deleted, chain.Suspended}}, "i2 i1", 2},
		{"root and fulls", service.SnapshotFilter{Zone: z, RootID: "ss-F1", Full: &yes}, "", 0},
		{"root and its resource", service.SnapshotFilter{Zone: z, RootID: "ss-F1", ResourceID: "vol-A"}, "i2 i3", 2},
		{"root and another resource", service.SnapshotFilter{Zone: z, RootID: "ss-F1", ResourceID: "vol-B"}, "", 0},
		{"resource, status and type", service.SnapshotFilter{Zone: z, ResourceID: "vol-A", Full: &no, Statuses: []chain.Status{chain.Suspended}}, "i2", 1},
	})
	view(t, s, func(tx service.Tx) error {
		got, total, err := tx.Snapshots(service.SnapshotFilter{Zone: z, Limit: 0})
		equal(t, "limit 0: rows", len(got), 0)
		equal(t, "limit 0: total", total, 4)
		return err
	})
}

func testSnapshotSearch(t *testing.T, s service.Store) {
	names := []string{"Nightly", "ÄRGER 100%", "a_b", "axb", "Straße", "ΣΊΣΥΦΟΣ", "", "日本語", strings.Repeat("x", 255)}
	update(t, s, func(tx service.Tx) error {
		for i, n := range names {
			p := snapshot(fmt.Sprintf("ss-%d", i), -i)
			p.Name = n
			must(t, tx.InsertSnapshot(p))
		}
		gone := snapshot("ss-GONE", 0)
		gone.Name, gone.Status = "Nightly", chain.Deleted
		return tx.InsertSnapshot(gone)
	})
	find := func(word string) service.SnapshotFilter { return service.SnapshotFilter{Zone: "ac1", Search: word} }
	runListCases(t, s, []listCase{
		{"any case", find("nIGHT"), "0", 1},
		{"one letter", find("b"), "2 3", 2},
		{"umlauts fold", find("ärger"), "1", 1},
		{"sigmas fold", find("σίσυφος"), "5", 1},
		{"percent is literal", find("%"), "1", 1},
		{"underscore is literal", find("a_b"), "2", 1},
		{"ideographs", find("本"), "7", 1},
		{"ids", find("SS-4"), "4", 1},
		{"id and name do not run together", find("0n"), "", 0},
		{"quotes", find("'"), "", 0},
		{"a zero byte", find("0\x00N"), "", 0},
		{"long", find(strings.Repeat("X", 255)), "8", 1},
		{"too long", find(strings.Repeat("X", 256)), "", 0},
		{"with ids", service.SnapshotFilter{Zone: "ac1", Search: "night", IDs: []string{"ss-GONE", "ss-1"}}, "GONE", 1},
		{"with status", service.SnapshotFilter{Zone: "ac1", Search: "night", Statuses: []chain.Status{chain.Deleted}}, "GONE", 1},
		{"with resource", service.SnapshotFilter{Zone: "ac1", Search: "b", ResourceID: "vol-A", Offset: 1}, "3", 2},
		{"with another resource", service.SnapshotFilter{Zone: "ac1", Search: "b", ResourceID: "vol-B"}, "", 0},
		{"every zone", service.SnapshotFilter{Search: "night"}, "0", 1},
	})
	renamed := snapshot("ss-0", 0)
	renamed.Name = "hourly"
	update(t, s, func(tx service.Tx) error { return tx.UpdateSnapshot(renamed) })
	runListCases(t, s, []listCase{
		{"the old name is gone", find("nightly"), "", 0},
		{"the new name is there", find("HOUR"), "0", 1},
	})
}

func testChainsAndHeads(t *testing.T, s service.Store) {
	// Inserted out of order; the full's own snapshot time is not the oldest.
	update(t, s, func(tx service.Tx) error {
		for i, id := range []string{"ss-D", "ss-C", "ss-B", "ss-F", "ss-G"} {
			p := snapshot(id, i)
			p.RootID, p.Full = "ss-F", id == "ss-F"
			p.SnapshotTime = map[string]time.Time{"ss-B": at(7), "ss-C": at(7), "ss-D": at(8), "ss-F": at(9), "ss-G": at(6)}[id]
			if id == "ss-G" {
				p.Status = chain.Ceased
			}
			must(t, tx.InsertSnapshot(p))
		}
		return tx.InsertSnapshot(snapshot("ss-OTHER", 0))
	})
	head := func(resource string) (id string) {
		view(t, s, func(tx service.Tx) error {
			p, ok, err := tx.Head(resource)
			if ok {
				id = p.ID
			}
			return err
		})
		return id
	}
	view(t, s, func(tx service.Tx) error {
		points, err := tx.Chain("ss-F")
		var ids []string
		for _, p := range points {
			ids = append(ids, p.ID)
		}
		equal(t, "chain: full first, then time and id, nothing ceased", ids, []string{"ss-F", "ss-B", "ss-C", "ss-D"})
		return err
	})
	equal(t, "no head", head("vol-A"), "")
	setHead := func(tx service.Tx, id string, is bool) error {
		p, err := tx.Snapshot("", id)
		if err != nil {
			return err
		}
		p.IsHead = is
		return tx.UpdateSnapshot(p)
	}
	update(t, s, func(tx service.Tx) error { return setHead(tx, "ss-C", true) })
	equal(t, "head", head("vol-A"), "ss-C")
	if err := s.Update(t.Context(), func(tx service.Tx) error { return setHead(tx, "ss-D", true) }); err == nil {
		t.Error("a second head was stored")
	}
	equal(t, "still the head", head("vol-A"), "ss-C")
	update(t, s, func(tx service.Tx) error {
		must(t, setHead(tx, "ss-C", false))
		return setHead(tx, "ss-D", true)
	})
	equal(t, "head moved", head("vol-A"), "ss-D")
	equal(t, "another resource's head", head("vol-B"), "")
}

func testLivePoints(t *testing.T, s service.Store) {
	statuses := []chain.Status{chain.Pending, chain.Available, chain.Suspended, chain.Deleted, chain.Ceased}
	const each = 350 // more, in all, than an implementation should read at once
	update(t, s, func(tx service.Tx) error {
		for i := range each {
			for _, st := range statuses {
				p := snapshot(fmt.Sprintf("ss-%s-%d", st, i), i)
				p.Status, p.ManifestPack, p.ManifestHash = st, "pack", "hash"
				if err := tx.InsertSnapshot(p); err != nil {
					return err
				}
			}
		}
		return nil
	})
	got := make(map[chain.Status]int)
	seen := make(map[string]bool)
	view(t, s, func(tx service.Tx) error {
		return tx.LivePoints(func(p service.Snapshot) error {
			if seen[p.ID] || p.RootID != p.ID || p.ManifestPack != "pack" || p.ManifestHash != "hash" {
				t.Errorf("point %+v is incomplete or comes twice", p)
			}
			seen[p.ID] = true
			got[p.Status]++
			// fn may use the transaction.
			_, err := tx.Setting("k")
			return err
		})
	})
	equal(t, "points by status", got, map[chain.Status]int{chain.Available: each, chain.Suspended: each, chain.Deleted: each})
	err := s.View(t.Context(), func(tx service.Tx) error {
		return tx.LivePoints(func(service.Snapshot) error { return errTest })
	})
	if err != errTest {
		t.Errorf("LivePoints returned %v, want fn's error as it is", err)
	}
}

// contains reports whether s holds word, case ignored as strings.EqualFold
// does: the plain way, to hold a store's own way against.
func contains(s, word string) bool {
	rs, n := []rune(s), utf8.RuneCountInString(word)
	for i := 0; i+n <= len(rs); i++ {
		if strings.EqualFold(string(rs[i:i+n]), word) {
			return true
		}
	}
	return false
}
