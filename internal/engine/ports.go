package engine

import (
	"context"
	"io"
)

// PackRecord is what the database knows of one blob of the repository.
type PackRecord struct {
	ID    string // hex
	Kind  string // "data", "node", "point"
	Name  string // blob name without its copy suffix
	Bytes int64
}

// Registry records a pack durably before its blob is put, and refuses (any
// error) once the session is no longer ACTIVE under the caller's term.
// DurablePacks lists what earlier terms of the same session registered.
type Registry interface {
	RegisterPack(ctx context.Context, p PackRecord) error
	SessionPacks(ctx context.Context) ([]PackRecord, error)
	// DropPacks records that packs of the session are being deleted, under the
	// same conditions as RegisterPack; SessionPacks lists them no more.
	// ForgetPacks removes their rows afterwards.
	DropPacks(ctx context.Context, ids []string) error
	ForgetPacks(ctx context.Context, ids []string) error
	// PackUsable reports whether a pack's row is LIVE and not marked damaged.
	PackUsable(ctx context.Context, id string) (bool, error)
}

// Session is one job's writing into the repository.
type Session interface {
	// Capture reads the source and makes the point durable: packs, nodes,
	// manifest, in that order. Captures of one session run one at a time. What
	// was read, and what need not be, is released: another capture takes another
	// Source.
	Capture(ctx context.Context, spec CaptureSpec, progress Progress) (Captured, error)
	// Copy makes a point durable that has the whole content of another, as a
	// full, without reading it: only the manifest is new. meta.SizeBytes is the
	// other's. It counts as a capture.
	Copy(ctx context.Context, meta PointMeta, of PointRef) (Captured, error)
	// Hits lists the packs that the captures refer to beyond what they
	// inherited. The committing transaction must take them into use.
	Hits() []string
	// Retake prepares for capturing everything again, because the committing
	// transaction found that some of the hits are being deleted. took is what
	// was captured; its manifests go.
	Retake(ctx context.Context, gone []string, took []Captured) error
	// Evacuate copies what is needed out of packs; see Engine.Mark.
	Evacuate(ctx context.Context, found Marks, packs []string) (Evacuated, error)
	// Committed publishes the session's chunks to the dedup index. Call it
	// after the committing transaction. Its failure costs space, never data.
	Committed(ctx context.Context) error
	// Close drops what the session holds in memory.
	Close() error
}

// Image streams one volume's content.
type Image interface {
	SizeBytes() int64
	// WriteTo streams in the format. An error midway leaves a cut stream:
	// the receiver must not take it for whole.
	WriteTo(ctx context.Context, w io.Writer, format Format) error
	Close() error
}
