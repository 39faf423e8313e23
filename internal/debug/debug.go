// Package debug shows what lies in a repository: its headers, packs, dedup
// index, trees and manifests, and who refers to a chunk. It is for the day on
// which something is wrong, so it needs no server and no database, and reads
// on past damage, which it names.
//
// Invariants:
//   - nothing is changed: the caller hands in a store and a repository that
//     were opened for reading only;
//   - no key and no plain bytes of a volume are shown; names and times of
//     points are;
//   - memory follows the number of blobs, a few hundred bytes each, never the
//     size of a tree;
//   - an answer is written even if damage was found, which then is the error
//     (errs.Corrupt).
package debug

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"cairn/internal/blobstore"
	"cairn/internal/errs"
	"cairn/internal/repo"
)

// Config is what an Inspector looks at and where it writes.
type Config struct {
	Store blobstore.Store
	// Repo is the repository opened for reading only; nil if RepoErr says why
	// it could not be. Headers and names of blobs are shown even so.
	Repo    *repo.Repo
	RepoErr error

	Out  io.Writer
	JSON bool // one document instead of tables
	// Live: a server may be writing beside us, so a second copy that is not
	// there yet is no damage.
	Live bool

	// Facts are what the caller knows of the folder around the repository.
	Facts []Fact
}

// Fact is one line of the overview.
type Fact struct {
	Key   string
	Value string
}

// Inspector answers one question about a repository. One goroutine.
type Inspector struct {
	Config
	*sheet
	damage int // findings
}

// New makes an Inspector.
func New(c Config) *Inspector { return &Inspector{Config: c, sheet: newSheet(c.Out, c.JSON)} }

// finish ends the answer. Its error is err, else the damage that was found.
func (d *Inspector) finish(err error) error {
	if writeErr := d.end(); err == nil {
		err = writeErr
	}
	if err == nil && d.damage > 0 {
		err = errs.New(errs.Corrupt, "damage was found (%d findings); run cairn scrub to learn all that is affected", d.damage)
	}
	return err
}

// needRepo fails a command that cannot do without the key.
func (d *Inspector) needRepo() error {
	if d.Repo == nil {
		return d.RepoErr
	}
	return nil
}

// why is what an error says to people who look for damage; it counts as a
// finding.
func (d *Inspector) why(err error) string {
	if err == nil {
		return ""
	}
	d.damage++
	return words(err)
}

// words is the whole text of an error on one line.
func words(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// state is what a row says of a part: what is wrong with it, or ok.
func (d *Inspector) state(err error) string { return cmp.Or(d.why(err), "ok") }

// stored is a pack and those of its blobs that the store has.
type stored struct {
	pack  repo.Pack
	blobs []repo.Blob // by name
}

// missing counts and lists the copies of a pack that are not there.
func (d *Inspector) missing(s stored) []string {
	out := s.lacks()
	if !d.Live {
		d.damage += len(out)
	}
	return out
}

// lacks lists the copies that are not there.
func (s *stored) lacks() []string {
	var out []string
	for _, name := range s.pack.Copies() {
		if !slices.ContainsFunc(s.blobs, func(b repo.Blob) bool { return b.Name == name }) {
			out = append(out, name)
		}
	}
	return out
}

// packs lists the packs below a prefix of blob names that want takes, in the
// order of their names.
func (d *Inspector) packs(ctx context.Context, prefix string, want func(repo.Pack) bool) ([]stored, error) {
	found := map[repo.Pack]*stored{}
	err := d.Store.List(ctx, prefix, func(b repo.Blob) error {
		p, header, named := repo.ParseBlob(b.Name)
		if !named || header || !want(p) {
			return nil
		}
		if found[p] == nil {
			found[p] = &stored{pack: p}
		}
		found[p].blobs = append(found[p].blobs, b)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the repository: %w", err)
	}
	out := make([]stored, 0, len(found))
	for _, s := range found {
		slices.SortFunc(s.blobs, func(a, b repo.Blob) int { return cmp.Compare(a.Name, b.Name) })
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b stored) int { return cmp.Compare(a.pack.Blob(), b.pack.Blob()) })
	return out, nil
}

// point is a manifest that lies in the repository.
type point struct {
	stored
	manifest *repo.Manifest // nil: unreadable
	err      error          // why it is nil
}

// name is how the point is called in an answer.
func (p *point) name() string { return p.pack.Snapshot }

// points reads the manifests of one snapshot, or of all if snapshot is "".
func (d *Inspector) points(ctx context.Context, snapshot string) ([]point, error) {
	prefix := "point/"
	if snapshot != "" {
		prefix += snapshot + "."
	}
	packs, err := d.packs(ctx, prefix, func(p repo.Pack) bool { return snapshot == "" || p.Snapshot == snapshot })
	if err != nil {
		return nil, err
	}
	out := make([]point, len(packs))
	for i, s := range packs {
		out[i].stored = s
		if out[i].manifest, out[i].err = d.Repo.SalvageManifest(ctx, s.pack, repo.ID{}); out[i].err != nil && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return out, nil
}

// onePoint is the point of a command that wants one.
func (d *Inspector) onePoint(ctx context.Context, snapshot string) (point, error) {
	if err := d.needRepo(); err != nil {
		return point{}, err
	}
	all, err := d.points(ctx, snapshot)
	switch {
	case err != nil:
		return point{}, err
	case snapshot == "" || len(all) == 0:
		return point{}, errs.New(errs.NotFound, "there is no point %q in the repository; cairn debug manifest lists them", snapshot)
	}
	// More than one: a crash left some of an earlier try. Take what reads.
	best := slices.IndexFunc(all, func(p point) bool { return p.manifest != nil })
	if best < 0 {
		return point{}, fmt.Errorf("read the manifest of %s: %w", snapshot, all[0].err)
	}
	return all[best], nil
}

// where words a place.
func where(l repo.Loc) string { return fmt.Sprintf("%s %d+%d", l.Pack.Blob(), l.Off, l.Len) }

// place is a location in a document.
type place struct {
	Pack   string `json:"pack"`
	Blob   string `json:"blob"` // without its copy suffix
	Offset uint32 `json:"offset"`
	Length uint32 `json:"length"`
	Sub    uint8  `json:"sub"` // number of the chunk in its frame
}

func newPlace(l repo.Loc) *place {
	return &place{Pack: l.Pack.ID.String(), Blob: l.Pack.Blob(), Offset: l.Off, Length: l.Len, Sub: l.Sub}
}
