package service

import (
	"context"

	"cairn/internal/engine"
	"cairn/internal/volume"
)

// Engine is what the use cases need of the byte mover (internal/engine).
type Engine interface {
	// OpenSession starts, or after a crash adopts, the repository side of a
	// job's session. Packs that an earlier term registered and made durable
	// are reused. reg is asked to register every pack before it is put.
	OpenSession(ctx context.Context, id string, term int64, reg engine.Registry) (engine.Session, error)

	// DiscardSession deletes every blob that the listed packs name. Call it
	// only after the session was read back as ABORTED. Running it twice is
	// harmless.
	DiscardSession(ctx context.Context, packs []engine.PackRecord) error

	// Restore makes target equal to the point; bytes past the point's size
	// become zeros. What is equal already is left alone, so running it twice
	// is harmless. It syncs before it returns.
	Restore(ctx context.Context, ref engine.PointRef, target volume.Target, progress engine.Progress) (engine.Restored, error)

	// VerifyReadable checks that the point's manifest and root are there.
	VerifyReadable(ctx context.Context, ref engine.PointRef) error

	// OpenTree opens a point for being read on demand.
	OpenTree(ctx context.Context, ref engine.PointRef) (volume.Tree, error)

	// OpenImage opens a point for streaming out.
	OpenImage(ctx context.Context, ref engine.PointRef) (engine.Image, error)

	// OpenSalvage opens a point for streaming what is left of it.
	OpenSalvage(ctx context.Context, ref engine.PointRef) (engine.Salvage, error)

	// SourceImage streams a frozen volume out, like OpenImage does a point.
	SourceImage(ctx context.Context, src volume.Source) (engine.Image, error)

	// ImportTo writes content of exactly size bytes to target, leaving zeros
	// as holes, and syncs.
	ImportTo(ctx context.Context, in engine.Inflow, size int64, target volume.Target, progress engine.Progress) error

	// FreedBytes tells how many bytes of the repository only the doomed
	// points use, given every pack row and all points that would survive.
	FreedBytes(ctx context.Context, packs []engine.PackRow, doomed, survivors []engine.PointRef) (int64, error)

	// Stored lists the repository's packs. A collection calls it before it
	// reads rows.
	Stored(ctx context.Context) (*engine.Stored, error)
	// Mark finds what the roots need; errs.Corrupt: not everything can be read,
	// so nothing may be deleted.
	Mark(ctx context.Context, spec engine.MarkSpec) (engine.Marks, error)
	// DeletePacks deletes blobs that the rows say are DELETING.
	DeletePacks(ctx context.Context, packs []engine.PackRecord) error

	// HealCopies writes damaged or missing copies of blobs anew from whole ones.
	HealCopies(ctx context.Context, blobs []string) (healed []string, err error)
	// RebuildIndex makes the dedup index anew from all stored packs.
	RebuildIndex(ctx context.Context) error
	// CheckPacks reads all copies of some packs afresh and checks every bit.
	CheckPacks(ctx context.Context, packs []engine.PackRecord) (engine.Verified, error)
	// Scrub reads and checks every blob and every point listed.
	Scrub(ctx context.Context, points []engine.PointRef, packs []engine.PackRecord, progress engine.Progress) (engine.ScrubReport, error)
}
