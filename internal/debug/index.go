package debug

import (
	"context"
	"encoding/hex"
	"fmt"

	"cairn/internal/errs"
	"cairn/internal/repo"
)

// parseID reads the id of a chunk or node.
func parseID(s string) (id repo.ID, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, errs.New(errs.Invalid, "%q is not the id of a chunk (64 hex digits); cairn debug tree and cairn debug pack show ids", s)
	}
	copy(id[:], b)
	if id.IsZero() {
		return id, errs.New(errs.Invalid, "the id of zeros only stands for zeros, which are not stored")
	}
	return id, nil
}

type runDoc struct {
	Name    string `json:"name"`
	Entries int64  `json:"entries"`
	Bytes   int64  `json:"bytes"`
}

type indexPlaceDoc struct {
	place
	State string `json:"state"`
}

// Index shows the dedup index: its files, or the places that it knows of a
// chunk and whether the chunk is there. check reads all entries.
func (d *Inspector) Index(ctx context.Context, id string, check bool) error {
	if err := d.needRepo(); err != nil {
		return err
	}
	if id != "" {
		chunk, err := parseID(id)
		if err != nil {
			return err
		}
		return d.finish(d.indexPlaces(ctx, chunk))
	}
	var err error
	if check {
		err = d.checkIndex(ctx)
	}
	d.indexRuns()
	return d.finish(err)
}

func (d *Inspector) indexRuns() {
	runs := d.Repo.IndexRuns()
	d.list("index", column{"index file", 24}, column{"entries", -12}, column{"bytes", -14})
	for _, r := range runs {
		d.row(runDoc(r), r.Name, fmt.Sprint(r.Entries), fmt.Sprint(r.Bytes))
	}
	d.list("index_damage", column{"index damage (an accelerator: no data is lost with it)", 0})
	for _, what := range d.Repo.IndexDropped() {
		d.damage++
		d.row(what, what)
	}
}

// checkIndex reads every entry and looks whether its pack is there.
func (d *Inspector) checkIndex(ctx context.Context) error {
	packs, err := d.packs(ctx, "data/", func(repo.Pack) bool { return true })
	if err != nil {
		return err
	}
	have := make(map[repo.PackID]bool, len(packs))
	for _, s := range packs {
		have[s.pack.ID] = true
	}
	var entries, stale int64
	err = d.Repo.ScanIndex(func(_ repo.ID, l repo.Loc) error {
		if entries++; entries%(1<<16) == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !have[l.Pack.ID] {
			stale++
		}
		return nil
	})
	d.field("intact_entries", entries, "")
	d.field("stale_entries", stale, fmt.Sprintf("%d (their packs are gone; they are never believed)", stale))
	return err
}

func (d *Inspector) indexPlaces(ctx context.Context, id repo.ID) error {
	x, err := d.Repo.NewReader()
	if err != nil {
		return err
	}
	defer x.Close()
	d.field("chunk", id.String(), "")
	d.list("places", column{"offset", -9}, column{"length", -8}, column{"sub", -3}, column{"pack", 50}, column{"state", 0})
	for _, l := range d.Repo.IndexPlaces(id) {
		state := d.state(x.CheckPlace(ctx, l, id))
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		d.row(indexPlaceDoc{*newPlace(l), state}, fmt.Sprint(l.Off), fmt.Sprint(l.Len), fmt.Sprint(l.Sub), l.Pack.Blob(), state)
	}
	return nil
}
