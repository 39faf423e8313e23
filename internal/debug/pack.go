package debug

import (
	"context"
	"fmt"
	"strings"

	"cairn/internal/errs"
	"cairn/internal/repo"
)

type packRecordDoc struct {
	Slot   uint32   `json:"slot"`
	Offset uint32   `json:"offset"`
	Length uint32   `json:"length"`
	Kind   string   `json:"kind"`
	Codec  string   `json:"codec"`
	Plain  int      `json:"plain_bytes"`
	IDs    []string `json:"ids"`
	State  string   `json:"state"`
}

type packCopyDoc struct {
	Name      string          `json:"name"`
	Bytes     int64           `json:"bytes"`
	Header    string          `json:"header"`
	Footer    string          `json:"footer"`
	Content   string          `json:"content_hash"`
	Directory string          `json:"directory"`
	Scanned   bool            `json:"scanned"` // records were found by scanning
	Records   []packRecordDoc `json:"records"`
}

// Pack shows every copy of a pack part by part, and whether each part is whole.
// id is a pack's id, its beginning if no other pack has the same, or the name
// of one of its blobs.
func (d *Inspector) Pack(ctx context.Context, id string) error {
	if err := d.needRepo(); err != nil {
		return err
	}
	s, err := d.findPack(ctx, id)
	if err != nil {
		return err
	}
	copies, err := d.Repo.InspectPack(ctx, s.pack)
	if err != nil {
		return err
	}
	d.field("pack", s.pack.ID.String(), "")
	d.field("kind", s.pack.Kind.String(), "")
	if s.pack.Snapshot != "" {
		d.field("snapshot_id", s.pack.Snapshot, "")
	}
	docs := make([]packCopyDoc, len(copies))
	for i := range copies {
		docs[i] = d.packCopy(&copies[i])
	}
	d.list("copies", column{"copy", 52}, column{"bytes", -9}, column{"records", -7}, column{"state", 0})
	for i, c := range docs {
		state := "ok"
		if !copies[i].Whole() {
			state = c.wrong()
		}
		d.row(c, c.Name, fmt.Sprint(c.Bytes), fmt.Sprint(len(c.Records)), state)
	}
	if !d.asJSON {
		d.records(copies, docs)
	}
	return d.finish(nil)
}

// findPack finds the one pack that id names.
func (d *Inspector) findPack(ctx context.Context, id string) (stored, error) {
	for _, suffix := range []string{"", ".a"} {
		if p, header, ok := repo.ParseBlob(id + suffix); ok && !header {
			return stored{pack: p}, nil
		}
	}
	found, err := d.packs(ctx, "", func(p repo.Pack) bool {
		return repo.Collected(p.Kind) && strings.HasPrefix(p.ID.String(), strings.ToLower(id))
	})
	switch {
	case err != nil:
		return stored{}, err
	case id == "" || len(found) == 0:
		return stored{}, errs.New(errs.NotFound, "there is no pack %q in the repository; cairn debug blobs lists them", id)
	case len(found) > 1:
		return stored{}, errs.New(errs.Invalid, "%d packs begin with %q; give more digits", len(found), id)
	}
	return found[0], nil
}

// packCopy puts a copy into words. Of damage in a copy one finding is counted
// for each part.
func (d *Inspector) packCopy(c *repo.PackCopy) packCopyDoc {
	doc := packCopyDoc{Name: c.Name, Bytes: c.Bytes, Scanned: c.Scanned, Records: []packRecordDoc{}}
	if c.ReadErr != nil {
		doc.Header = d.state(c.ReadErr)
		return doc
	}
	doc.Header, doc.Footer = d.state(c.HeaderErr), d.state(c.FooterErr)
	doc.Content, doc.Directory = d.state(c.ContentErr), d.state(c.DirectoryErr)
	for _, r := range c.Records {
		rec := packRecordDoc{
			Slot: r.Slot, Offset: r.Off, Length: r.Len, Kind: r.Kind.String(), Codec: r.Encoding.String(), Plain: r.PlainLen, State: d.state(r.Err),
		}
		for _, id := range r.IDs {
			rec.IDs = append(rec.IDs, id.String())
		}
		doc.Records = append(doc.Records, rec)
	}
	return doc
}

// wrong sums up what is not whole.
func (c *packCopyDoc) wrong() string {
	var out []string
	for _, s := range []struct{ part, state string }{
		{"header", c.Header}, {"footer", c.Footer}, {"content hash", c.Content}, {"directory", c.Directory},
	} {
		if s.state != "" && s.state != "ok" {
			out = append(out, s.part+": "+s.state)
		}
	}
	bad := 0
	for _, r := range c.Records {
		if r.State != "ok" {
			bad++
		}
	}
	if bad > 0 {
		out = append(out, fmt.Sprintf("%d damaged records", bad))
	}
	return strings.Join(out, "; ")
}

// records lists the records for people, one line for each id: those of the
// first copy, and of the others where they differ.
func (d *Inspector) records(copies []repo.PackCopy, docs []packCopyDoc) {
	same := true
	for i := range copies {
		same = same && copies[i].Whole()
	}
	for i, c := range docs {
		if i > 0 && same {
			return
		}
		if !same {
			d.note("%s", c.Name)
		}
		d.list("records", column{"slot", -5}, column{"offset", -9}, column{"length", -8}, column{"kind", 8}, column{"codec", 6},
			column{"plain", -8}, column{"sub", -3}, column{"id", 64}, column{"state", 0})
		for _, r := range c.Records {
			for sub, id := range r.IDs {
				d.row(nil, fmt.Sprint(r.Slot), fmt.Sprint(r.Offset), fmt.Sprint(r.Length), r.Kind, r.Codec, fmt.Sprint(r.Plain), fmt.Sprint(sub), id, r.State)
			}
		}
	}
}
