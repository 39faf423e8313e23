package cli_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"cairn/client"
)

// This file is the fake's volumes and snapshots.

func (f *fake) addVolume(name string, size int64) *client.Volume {
	v := &client.Volume{
		ID: fmt.Sprintf("vol-%08d", len(f.volumes)+1), Name: name, SizeBytes: size, Size: (size + 1<<30 - 1) >> 30,
		Status: "available", Driver: "managed", Zone: "ac1", CreateTime: f.now(),
	}
	v.StatusTime = v.CreateTime
	f.content[v.ID] = sparse(8192)
	f.volumes = slices.Insert(f.volumes, 0, v)
	return v
}

func (f *fake) volume(id string) *client.Volume {
	for _, v := range f.volumes {
		if v.ID == id {
			return v
		}
	}
	return nil
}

// noVolume is the refusal for the first id that names none.
func (f *fake) noVolume(list []string) any {
	for _, id := range list {
		if f.volume(id) == nil {
			return refuse(404, "volume %s does not exist", id)
		}
	}
	return nil
}

func (f *fake) listVolumes(r *http.Request) any {
	rows := []*client.Volume{}
	for _, v := range f.volumes {
		if r.FormValue("volumes") == "" && r.FormValue("status") == "" && v.Status == "deleted" {
			continue
		}
		if chosen(r, "volumes", v.ID) && chosen(r, "status", v.Status) && chosen(r, "volume_type", fmt.Sprint(v.Type)) && found(r, v.ID, v.Name) {
			shown := *v
			rows = append(rows, &shown)
			if !v.OnDemand {
				v.MissingBytes -= v.MissingBytes / 2
			}
			if v.MissingBytes == 1 {
				v.MissingBytes = 0
			}
		}
	}
	return map[string]any{"volumes": page(r, rows, 10), "total_count": len(rows)}
}

func (f *fake) createVolume(r *http.Request) any {
	body := decode(r)
	count, size := 1, body["size_bytes"].(float64)
	if n, ok := body["count"].(float64); ok {
		count = int(n)
	}
	var made []string
	for range count {
		v := f.addVolume(text(body, "volume_name"), int64(size))
		v.Type = int(body["volume_type"].(float64))
		made = append(made, v.ID)
	}
	return f.start("CreateVolume", text(body, "volume_name"), made)
}

func (f *fake) register(r *http.Request, local bool) any {
	body := decode(r)
	switch {
	case !local:
		return refuse(403, "only through the unix socket")
	case strings.Contains(text(body, "path"), "taken"):
		return refuse(409, "%s is a volume already", text(body, "path"))
	}
	v := f.addVolume(text(body, "volume_name"), 4096)
	v.Driver, v.Path, v.Description = "registered", text(body, "path"), text(body, "description")
	return v
}

func (f *fake) resizeVolumes(r *http.Request) any {
	body := decode(r)
	list := ids(body, "volumes")
	if no := f.noVolume(list); no != nil {
		return no
	}
	size := int64(body["size_bytes"].(float64))
	for _, id := range list {
		if v := f.volume(id); size < v.SizeBytes {
			return refuse(409, "volume %s is larger already; a volume only grows", id)
		}
		f.volume(id).SizeBytes = size
	}
	return f.start("ResizeVolumes", "", list)
}

func (f *fake) fillVolumes(r *http.Request) any {
	list := ids(decode(r), "volumes")
	if no := f.noVolume(list); no != nil {
		return no
	}
	for _, id := range list {
		f.volume(id).OnDemand = false
	}
	return nil
}

func (f *fake) renameVolume(r *http.Request) any {
	v := f.volume(r.PathValue("id"))
	if v == nil {
		return refuse(404, "volume %s does not exist", r.PathValue("id"))
	}
	body := decode(r)
	if _, ok := body["volume_name"]; ok {
		v.Name = text(body, "volume_name")
	}
	if _, ok := body["description"]; ok {
		v.Description = text(body, "description")
	}
	return nil
}

func (f *fake) deleteVolumes(r *http.Request) any {
	list := strings.Split(r.PathValue("ids"), ",")
	if no := f.noVolume(list); no != nil {
		return no
	}
	for _, id := range list {
		f.volume(id).Status = "deleted"
	}
	return f.start("DeleteVolumes", "", list)
}

func (f *fake) addSnapshot(volume, name string, full bool) *client.Snapshot {
	s := &client.Snapshot{
		ID: fmt.Sprintf("ss-%08d", len(f.snapshots)+1), Name: name, Type: client.Full, ParentID: client.ParentSelf,
		Status: "available", CreateTime: f.now(), IsTaken: true, IsHead: true, SizeBytes: 1 << 20, Size: 1,
		Resource: client.Resource{ID: volume, Type: "volume"}, VirtualSize: 1 << 30, Progress: 1, Tags: []string{},
	}
	s.SnapshotTime, s.RootID = s.CreateTime, s.ID
	for _, old := range f.snapshots {
		if old.Resource.ID == volume && bool(old.IsHead) && old.Status == "available" {
			old.IsHead = false
			if !full {
				s.Type, s.ParentID, s.RootID = client.Incremental, old.ID, old.RootID
			}
		}
	}
	f.content[s.ID] = sparse(1 << 20)
	f.snapshots = slices.Insert(f.snapshots, 0, s)
	return s
}

func (f *fake) snapshot(id string) *client.Snapshot {
	for _, s := range f.snapshots {
		if s.ID == id {
			return s
		}
	}
	return nil
}

func (f *fake) noSnapshot(list []string) any {
	for _, id := range list {
		switch s := f.snapshot(id); {
		case s == nil:
			return refuse(404, "snapshot %s does not exist", id)
		case s.Status != "available":
			return refuse(409, "snapshot %s is %s; please try later", id, s.Status)
		}
	}
	return nil
}

func (f *fake) listSnapshots(r *http.Request) any {
	rows := []*client.Snapshot{}
	for _, s := range f.snapshots {
		if r.FormValue("snapshots") == "" && r.FormValue("status") == "" && s.Status == "deleted" {
			continue
		}
		root := r.FormValue("root_id")
		if chosen(r, "snapshots", s.ID) && chosen(r, "status", s.Status) && chosen(r, "resource_id", s.Resource.ID) &&
			chosen(r, "snapshot_type", s.Type) && found(r, s.ID, s.Name) && (root == "" || s.RootID == root && s.ID != root) {
			rows = append(rows, s)
		}
	}
	return map[string]any{"snapshots": page(r, rows, 20), "total_count": len(rows)}
}

func (f *fake) createSnapshots(r *http.Request) any {
	body := decode(r)
	list := ids(body, "resources")
	if no := f.noVolume(list); no != nil {
		return no
	}
	var made []string
	for _, id := range list {
		s := f.addSnapshot(id, text(body, "snapshot_name"), body["is_full"] == 1.0)
		s.Description = text(body, "description")
		made = append(made, s.ID)
	}
	return f.start("CreateSnapshots", text(body, "snapshot_name"), made)
}

func (f *fake) apply(r *http.Request) any {
	list := ids(decode(r), "snapshots")
	if no := f.noSnapshot(list); no != nil {
		return no
	}
	for _, id := range list {
		s := f.snapshot(id)
		for _, other := range f.snapshots {
			if other.Resource.ID == s.Resource.ID {
				other.IsHead = other == s
			}
		}
	}
	return f.start("ApplySnapshots", "", list)
}

func (f *fake) createFrom(r *http.Request) any {
	if no := f.noSnapshot([]string{r.PathValue("id")}); no != nil {
		return no
	}
	body := decode(r)
	v := f.addVolume(text(body, "volume_name"), 1<<30)
	v.MissingBytes = 64 // each look at it halves that, unless it is read on demand
	v.OnDemand = body["on_demand"] == true
	v.NBDURIs = []string{"nbd://127.0.0.1:10809/" + v.ID}
	return f.start("CreateVolumeFromSnapshot", v.Name, []string{v.ID})
}

func (f *fake) renameSnapshot(r *http.Request) any {
	s := f.snapshot(r.PathValue("id"))
	if s == nil {
		return refuse(404, "snapshot %s does not exist", r.PathValue("id"))
	}
	body := decode(r)
	if _, ok := body["snapshot_name"]; ok {
		s.Name = text(body, "snapshot_name")
	}
	if _, ok := body["description"]; ok {
		s.Description = text(body, "description")
	}
	return nil
}

func (f *fake) serve(r *http.Request, local bool) any {
	s := f.snapshot(r.PathValue("id"))
	if s == nil {
		return refuse(404, "snapshot %s does not exist", r.PathValue("id"))
	}
	s.Clients, s.NBDURIs = 1, []string{"nbd://127.0.0.1:10809/" + s.ID}
	if local {
		s.NBDURIs = []string{"nbd+unix:///" + s.ID + "?socket=/d/nbd.sock"}
	}
	return client.Served{SnapshotID: s.ID, NBDURIs: s.NBDURIs, Clients: s.Clients}
}

func (f *fake) unserve(r *http.Request) any {
	s := f.snapshot(r.PathValue("id"))
	if s.Clients > 0 && r.FormValue("force") != "1" {
		return refuse(409, "snapshot %s has 1 client connection(s)", s.ID)
	}
	s.Clients, s.NBDURIs = 0, []string{}
	return nil
}

func (f *fake) deleteSnapshots(r *http.Request) any {
	list := strings.Split(r.PathValue("ids"), ",")
	if no := f.noSnapshot(list); no != nil {
		return no
	}
	for grown := true; grown; {
		grown = false
		for _, s := range f.snapshots {
			if slices.Contains(list, s.ParentID) && !slices.Contains(list, s.ID) {
				list, grown = append(list, s.ID), true
			}
		}
	}
	if r.FormValue("dry_run") == "1" {
		return client.DeletePlan{Snapshots: list, FreedBytes: int64(len(list)) << 20}
	}
	for _, id := range list {
		f.snapshot(id).Status = "deleted"
	}
	return f.start("DeleteSnapshots", "", list)
}
