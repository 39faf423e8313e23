package debug

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"cairn/internal/errs"
	"cairn/internal/repo"
)

// Overview shows the repository as a whole. It needs no key.
func (d *Inspector) Overview(ctx context.Context) error { return d.finish(d.overview(ctx)) }

func (d *Inspector) overview(ctx context.Context) error {
	headers, err := repo.Headers(ctx, d.Store)
	if err != nil {
		return err
	}
	slices.SortFunc(headers, func(a, b repo.HeaderCopy) int { return cmp.Compare(a.Blob.Name, b.Blob.Name) })
	for _, f := range d.Facts {
		d.field(f.Key, f.Value, "")
	}
	newest := newestHeader(headers)
	if newest != nil {
		d.field("repository_id", newest.Repo.String(), "")
		d.field("created", stamp(newest.Created), "")
		d.field("generation", newest.Generation, "")
	}
	opened := "yes"
	if d.Repo == nil {
		opened = "no: " + words(d.RepoErr)
		if errs.Is(d.RepoErr, errs.Corrupt) {
			d.damage++
		}
	}
	d.field("opens", d.Repo != nil, opened)
	if err := d.headers(ctx, headers, newest); err != nil {
		return err
	}
	if err := d.totals(ctx); err != nil {
		return err
	}
	if d.Repo != nil {
		d.indexRuns()
	}
	return nil
}

// newestHeader is the readable header of the highest generation.
func newestHeader(headers []repo.HeaderCopy) *repo.HeaderCopy {
	var newest *repo.HeaderCopy
	for i := range headers {
		if h := &headers[i]; h.Err == nil && (newest == nil || h.Generation > newest.Generation) {
			newest = h
		}
	}
	return newest
}

type headerDoc struct {
	Name       string `json:"name"`
	Bytes      int64  `json:"bytes"`
	Generation uint64 `json:"generation"`
	State      string `json:"state"`
}

type slotDoc struct {
	Slot int    `json:"slot"`
	Kind string `json:"kind"`
	ID   string `json:"id"`
}

func (d *Inspector) headers(ctx context.Context, headers []repo.HeaderCopy, newest *repo.HeaderCopy) error {
	d.list("headers", column{"header", 25}, column{"bytes", -6}, column{"generation", -10}, column{"state", 0})
	for _, h := range headers {
		err := h.Err
		if err == nil && d.Repo != nil {
			if err = d.check(ctx, h.Blob); ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		doc := headerDoc{h.Blob.Name, h.Blob.Size, h.Generation, d.state(err)}
		d.row(doc, doc.Name, fmt.Sprint(doc.Bytes), fmt.Sprint(doc.Generation), doc.State)
	}
	d.list("key_slots", column{"slot", -4}, column{"kind", 16}, column{"id", 0})
	if newest == nil {
		return nil
	}
	for i, s := range newest.Slots {
		d.row(slotDoc{i, s.Kind, s.ID}, fmt.Sprint(i), s.Kind, s.ID)
	}
	return nil
}

// check checks every bit of a blob.
func (d *Inspector) check(ctx context.Context, b repo.Blob) error {
	x, err := d.Repo.NewReader()
	if err != nil {
		return err
	}
	defer x.Close()
	_, finding, err := x.CheckBlob(ctx, b)
	return cmp.Or(finding, err)
}

type totalDoc struct {
	Kind    string `json:"kind"`
	Packs   int    `json:"packs"`
	Blobs   int    `json:"blobs"`
	Bytes   int64  `json:"bytes"`
	Missing int    `json:"missing_copies"`
}

// totals counts the blobs of each kind.
func (d *Inspector) totals(ctx context.Context) error {
	all, err := d.packs(ctx, "", func(repo.Pack) bool { return true })
	if err != nil {
		return err
	}
	kinds := map[string]*totalDoc{}
	for _, s := range all {
		kind := s.pack.Kind.String()
		if kinds[kind] == nil {
			kinds[kind] = &totalDoc{Kind: kind}
		}
		t := kinds[kind]
		t.Packs++
		t.Blobs += len(s.blobs)
		t.Missing += len(d.missing(s))
		for _, b := range s.blobs {
			t.Bytes += b.Size
		}
	}
	rows := make([]*totalDoc, 0, len(kinds))
	for _, t := range kinds {
		rows = append(rows, t)
	}
	slices.SortFunc(rows, func(a, b *totalDoc) int { return cmp.Compare(a.Kind, b.Kind) })
	d.list("packs", column{"kind", 8}, column{"packs", -8}, column{"blobs", -8}, column{"bytes", -16}, column{"missing copies", -14})
	for _, t := range rows {
		d.row(t, t.Kind, fmt.Sprint(t.Packs), fmt.Sprint(t.Blobs), fmt.Sprint(t.Bytes), fmt.Sprint(t.Missing))
	}
	return nil
}

type blobDoc struct {
	Name  string `json:"name"`
	Kind  string `json:"kind"`
	Bytes int64  `json:"bytes"`
	State string `json:"state"`
}

// Blobs lists the blobs whose name begins with prefix, and the copies that are
// missing. check reads each and checks every bit of it.
func (d *Inspector) Blobs(ctx context.Context, prefix string, check bool) error {
	if check {
		if err := d.needRepo(); err != nil {
			return err
		}
	}
	return d.finish(d.blobs(ctx, prefix, check))
}

func (d *Inspector) blobs(ctx context.Context, prefix string, check bool) error {
	var rows []blobDoc
	err := d.Store.List(ctx, prefix, func(b repo.Blob) error {
		p, header, named := repo.ParseBlob(b.Name)
		row := blobDoc{Name: b.Name, Bytes: b.Size, Kind: "header"}
		switch {
		case !named:
			row.Kind, row.State = "", d.why(fmt.Errorf("no blob of a repository has this name"))
		case !header:
			row.Kind = p.Kind.String()
		}
		rows = append(rows, row)
		return nil
	})
	if err != nil {
		return fmt.Errorf("list the repository: %w", err)
	}
	packs, err := d.packs(ctx, prefix, func(repo.Pack) bool { return true })
	if err != nil {
		return err
	}
	for _, s := range packs {
		for _, name := range d.missing(s) {
			if strings.HasPrefix(name, prefix) {
				rows = append(rows, blobDoc{Name: name, Kind: s.pack.Kind.String(), State: "missing"})
			}
		}
	}
	slices.SortFunc(rows, func(a, b blobDoc) int { return cmp.Compare(a.Name, b.Name) })
	d.list("blobs", column{"bytes", -12}, column{"kind", 6}, column{"name", 52}, column{"state", 0})
	for _, row := range rows {
		if row.State == "" && check {
			row.State = d.state(d.check(ctx, repo.Blob{Name: row.Name, Size: row.Bytes}))
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		d.row(row, fmt.Sprint(row.Bytes), row.Kind, row.Name, row.State)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }
