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
}

// OpenSession starts, or after a crash adopts, a job's session.
func (e *Engine) OpenSession(ctx context.Context, id string, term int64, reg Registry) (Session, error) {
	s, err := e.r.NewSession(ctx, recorder{reg})
	if err != nil {
		return nil, fmt.Errorf("open session %s in term %d: %w", id, term, err)
	}
	return &session{e: e, s: s}, nil
}

func (s *session) Committed(ctx context.Context) error { return s.s.Committed(ctx) }

func (s *session) Close() error { return s.s.Close() }

// DiscardSession deletes the blobs of an aborted session's packs.
func (e *Engine) DiscardSession(ctx context.Context, packs []PackRecord) error {
	ps := make([]repo.PackRecord, 0, len(packs))
	for _, p := range packs {
		rp, err := p.repo()
		if err != nil {
			return err
		}
		ps = append(ps, rp)
	}
	return e.r.DeletePacks(ctx, ps)
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
	out := make([]repo.PackRecord, 0, len(have))
	for _, p := range have {
		rp, err := p.repo()
		if err != nil {
			return nil, err
		}
		out = append(out, rp)
	}
	return out, nil
}

func (r recorder) Forget(ctx context.Context, packs []repo.PackID) error {
	ids := make([]string, len(packs))
	for i, p := range packs {
		ids[i] = p.String()
	}
	return r.reg.ForgetPacks(ctx, ids)
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
