package engine

import (
	"context"
	"fmt"

	"cairn/internal/repo"
)

// session is one job's writing into the repository.
type session struct {
	e *Engine
	s *repo.Session
	// untrue says of which resources an audit found the tracking wrong. Captures
	// run one at a time.
	untrue map[string]Audit
}

// OpenSession starts, or after a crash adopts, a job's session.
func (e *Engine) OpenSession(ctx context.Context, id string, term int64, reg Registry) (Session, error) {
	s, err := e.r.NewSession(ctx, recorder{reg})
	if err != nil {
		return nil, fmt.Errorf("open session %s in term %d: %w", id, term, err)
	}
	return &session{e: e, s: s, untrue: map[string]Audit{}}, nil
}

func (s *session) Hits() []string {
	return packIDs(s.s.Hits())
}

func (s *session) Retake(ctx context.Context, gone []string, took []Captured) error {
	avoid := make([]repo.PackID, len(gone))
	for i, id := range gone {
		var err error
		if avoid[i], err = repo.ParsePackID(id); err != nil {
			return err
		}
	}
	manifests := make([]repo.Pack, len(took))
	for i, c := range took {
		var err error
		if manifests[i], _, err = c.Ref.pack(); err != nil {
			return err
		}
	}
	return s.s.Retake(ctx, avoid, manifests)
}

func (s *session) Committed(ctx context.Context) error { return s.s.Committed(ctx) }

func (s *session) Close() error { return s.s.Close() }

// DiscardSession deletes the blobs of an aborted session's packs.
func (e *Engine) DiscardSession(ctx context.Context, packs []PackRecord) error {
	records, err := repoRecords(packs)
	if err != nil {
		return err
	}
	return e.r.DeletePacks(ctx, records)
}

// repoRecords reads rows back into the repository's words.
func repoRecords(rows []PackRecord) ([]repo.PackRecord, error) {
	out := make([]repo.PackRecord, 0, len(rows))
	for _, row := range rows {
		p, err := row.repo()
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// recorder lets the repository ask the database through a Registry.
type recorder struct{ reg Registry }

func (r recorder) Register(ctx context.Context, p repo.PackRecord) error {
	return r.reg.RegisterPack(ctx, PackRecord{ID: p.Pack.ID.String(), Kind: p.Pack.Kind.String(), Name: p.Pack.Blob(), Bytes: p.Bytes})
}

func (r recorder) Registered(ctx context.Context) ([]repo.PackRecord, error) {
	have, err := r.reg.SessionPacks(ctx)
	if err != nil {
		return nil, err
	}
	return repoRecords(have)
}

func (r recorder) Drop(ctx context.Context, packs []repo.PackID) error {
	return r.reg.DropPacks(ctx, packIDs(packs))
}

func (r recorder) Forget(ctx context.Context, packs []repo.PackID) error {
	return r.reg.ForgetPacks(ctx, packIDs(packs))
}

func packIDs(packs []repo.PackID) []string {
	ids := make([]string, len(packs))
	for i, p := range packs {
		ids[i] = p.String()
	}
	return ids
}

func (r recorder) Usable(ctx context.Context, p repo.PackID) (bool, error) {
	return r.reg.PackUsable(ctx, p.String())
}

// repo reads a row back into the repository's words and checks that they
// belong together: its name decides what is deleted.
func (p PackRecord) repo() (repo.PackRecord, error) {
	pack, ok := repo.ParsePack(p.Name)
	if !ok || pack.ID.String() != p.ID || pack.Kind.String() != p.Kind {
		return repo.PackRecord{}, fmt.Errorf("pack row %s of kind %q does not fit its blob name %q", p.ID, p.Kind, p.Name)
	}
	return repo.PackRecord{Pack: pack, Bytes: p.Bytes}, nil
}
