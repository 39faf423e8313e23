package debug

import (
	"context"
	"fmt"

	"cairn/internal/errs"
	"cairn/internal/repo"
)

type copyDoc struct {
	Name  string `json:"name"`
	State string `json:"state"`
}

type rootDoc struct {
	Level int    `json:"level"`
	Hash  string `json:"hash,omitempty"` // none: every byte is zero
	Place *place `json:"place,omitempty"`
}

// manifestDoc is a manifest field by field (FORMAT.md §7).
type manifestDoc struct {
	Snapshot string    `json:"snapshot_id"`
	Pack     string    `json:"pack"`
	Copies   []copyDoc `json:"copies"`
	Error    string    `json:"error,omitempty"` // no copy gives the manifest: the rest is empty

	Resource     string   `json:"resource_id"`
	SizeBytes    int64    `json:"size_bytes"`
	Root         *rootDoc `json:"root,omitempty"`
	Full         bool     `json:"full"`
	Parent       string   `json:"parent_id"`
	ChainRoot    string   `json:"root_id"`
	Job          string   `json:"job_id"`
	SnapshotTime string   `json:"snapshot_time"`
	CreateTime   string   `json:"create_time"`
	AddedBytes   int64    `json:"added_bytes"`
	Name         string   `json:"snapshot_name"`
	Description  string   `json:"description"`
	ResourceType string   `json:"resource_type"`
	ResourceName string   `json:"resource_name"`
	VolumeType   int64    `json:"volume_type"`
	Zone         string   `json:"zone"`
	Group        string   `json:"group_id"`
	Consistency  string   `json:"consistency"`
	CBT          string   `json:"cbt"`
	Reason       string   `json:"reason"`
}

// Manifests shows the manifests of a snapshot or of one blob, or lists those
// of all points if which is "". What lies in the repository is shown: whether
// a point was committed, and not deleted since, its manifest does not tell.
func (d *Inspector) Manifests(ctx context.Context, which string) error {
	if err := d.needRepo(); err != nil {
		return err
	}
	snapshot, pack := which, ""
	for _, suffix := range []string{"", ".a"} {
		if p, header, ok := repo.ParseBlob(which + suffix); ok && !header && p.Kind == repo.PointKind {
			snapshot, pack = p.Snapshot, p.ID.String()
		}
	}
	all, err := d.points(ctx, snapshot)
	if err != nil {
		return err
	}
	found := all[:0]
	for _, p := range all {
		if pack == "" || p.pack.ID.String() == pack {
			found = append(found, p)
		}
	}
	if which != "" && len(found) == 0 {
		return errs.New(errs.NotFound, "there is no manifest of %q in the repository; cairn debug manifest lists all", which)
	}
	return d.finish(d.manifests(ctx, found, which == ""))
}

func (d *Inspector) manifests(ctx context.Context, points []point, brief bool) error {
	if d.asJSON || brief {
		d.list("manifests", column{"snapshot", 12}, column{"kind", 5}, column{"parent", 12}, column{"resource", 13},
			column{"bytes", -14}, column{"instant", 27}, column{"state", 8}, column{"name", 0})
	}
	for i := range points {
		doc := d.manifestDoc(ctx, &points[i])
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		switch {
		case d.asJSON:
			d.row(doc)
		case brief:
			d.briefly(doc)
		default:
			if i > 0 {
				d.note("")
			}
			d.fully(doc)
		}
	}
	if brief {
		d.note("These manifests lie in the repository. A point that was deleted, or never\ncommitted, may be among them: only the database knows.")
	}
	return nil
}

// manifestDoc reads each copy by itself.
func (d *Inspector) manifestDoc(ctx context.Context, p *point) manifestDoc {
	doc := manifestDoc{Snapshot: p.pack.Snapshot, Pack: p.pack.ID.String()}
	lacks := d.missing(p.stored)
	for _, name := range lacks {
		doc.Copies = append(doc.Copies, copyDoc{name, "missing"})
	}
	for _, b := range p.blobs {
		_, err := d.Repo.ReadManifestCopy(ctx, p.pack, b.Name)
		doc.Copies = append(doc.Copies, copyDoc{b.Name, d.state(err)})
	}
	m := p.manifest
	if m == nil {
		doc.Error = words(p.err)
		return doc
	}
	doc.Resource, doc.SizeBytes, doc.Full, doc.Parent, doc.ChainRoot, doc.Job = m.Resource, m.SizeBytes, m.Full, m.Parent, m.ChainRoot, m.Job
	doc.SnapshotTime, doc.CreateTime, doc.AddedBytes = stamp(m.SnapshotTime), stamp(m.CreateTime), m.AddedBytes
	doc.Name, doc.Description, doc.ResourceType, doc.ResourceName = m.Name, m.Description, m.ResourceType, m.ResourceName
	doc.VolumeType, doc.Zone, doc.Group = m.VolumeType, m.Zone, m.Group
	doc.Consistency, doc.CBT, doc.Reason = m.Consistency, m.CBT, m.Reason
	doc.Root = &rootDoc{Level: int(m.Root.Level)}
	if !m.Root.Ref.IsZero() {
		doc.Root.Hash, doc.Root.Place = m.Root.Ref.ID.String(), newPlace(m.Root.Ref.Loc)
	}
	return doc
}

func (m *manifestDoc) kind() string {
	switch {
	case m.Error != "":
		return ""
	case m.Full:
		return "full"
	}
	return "incr"
}

func (m *manifestDoc) whole() bool {
	for _, c := range m.Copies {
		if c.State != "ok" {
			return false
		}
	}
	return true
}

func (d *Inspector) briefly(m manifestDoc) {
	state := "ok"
	switch {
	case m.Error != "":
		state = "lost"
	case !m.whole():
		state = "damaged"
	}
	d.row(m, m.Snapshot, m.kind(), m.Parent, m.Resource, fmt.Sprint(m.SizeBytes), m.SnapshotTime, state, m.Name)
}

func (d *Inspector) fully(m manifestDoc) {
	d.field("snapshot", m.Snapshot, "")
	d.field("pack", m.Pack, "")
	for _, c := range m.Copies {
		d.field("copy", nil, c.Name+"  "+c.State)
	}
	if m.Error != "" {
		d.field("error", nil, m.Error)
		return
	}
	root := "every byte is zero"
	if m.Root.Place != nil {
		root = fmt.Sprintf("%s at %s %d+%d", m.Root.Hash, m.Root.Place.Blob, m.Root.Place.Offset, m.Root.Place.Length)
	}
	for _, f := range []struct{ key, text string }{
		{"name", m.Name}, {"description", m.Description}, {"kind", m.kind()}, {"parent", m.Parent}, {"chain's full", m.ChainRoot},
		{"group", m.Group}, {"job", m.Job}, {"resource", m.Resource}, {"resource name", m.ResourceName}, {"resource type", m.ResourceType},
		{"volume type", fmt.Sprint(m.VolumeType)}, {"zone", m.Zone}, {"bytes", fmt.Sprint(m.SizeBytes)}, {"added bytes", fmt.Sprint(m.AddedBytes)},
		{"instant", m.SnapshotTime}, {"accepted", m.CreateTime}, {"consistency", m.Consistency}, {"changes", m.CBT}, {"reason", m.Reason},
		{"root level", fmt.Sprint(m.Root.Level)}, {"root", root},
	} {
		if f.text != "" {
			d.field(f.key, nil, f.text)
		}
	}
}
