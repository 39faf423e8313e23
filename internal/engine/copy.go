package engine

import (
	"context"
	"fmt"

	"cairn/internal/repo"
)

// Copy makes a point of another one's tree; see the Session interface.
func (s *session) Copy(ctx context.Context, meta PointMeta, of PointRef) (Captured, error) {
	m, err := s.e.manifest(ctx, of)
	if err != nil {
		return Captured{}, err
	}
	meta.SizeBytes = m.SizeBytes
	w, err := s.s.NewPoint(ctx, repo.PointConfig{Snapshot: meta.Snapshot, SizeBytes: m.SizeBytes, Parent: &m.Root, Keep: true})
	if err != nil {
		return Captured{}, err
	}
	point, err := w.Finish(ctx, CaptureSpec{Meta: meta}.manifest(m.SizeBytes))
	if err != nil {
		return Captured{}, fmt.Errorf("copy %s to %s: %w", m.Snapshot, meta.Snapshot, err)
	}
	return Captured{
		Ref:        PointRef{Snapshot: meta.Snapshot, Pack: point.Pack.ID.String(), Hash: point.Content.String()},
		AddedBytes: point.AddedBytes, SourceBytes: m.SizeBytes,
		CBT: meta.CBT, Reason: meta.Reason, Checkpoint: checkpoint(m.SizeBytes, point.Root),
	}, nil
}
