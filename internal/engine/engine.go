package engine

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"cairn/internal/repo"
)

// Config bounds what an Engine uses.
type Config struct {
	Workers int // goroutines that hash and compress, or decode; 0: one per core, up to DefaultWorkers
	// Yield is called by each worker of a capture after some milliseconds of
	// work, with how long they took, and may keep it waiting for the good of
	// others. nil: never.
	Yield func(ctx context.Context, worked time.Duration) error
}

// DefaultWorkers bounds the workers of a machine with many cores, and so the
// memory: each takes up to 7 MiB, and with 8 a job stays well below 192 MiB.
const DefaultWorkers = 8

// Engine moves bytes between volumes and one repository.
type Engine struct {
	r       *repo.Repo
	workers int
	yield   func(ctx context.Context, worked time.Duration) error
}

// New makes an Engine.
func New(r *repo.Repo, c Config) *Engine {
	if c.Workers <= 0 {
		c.Workers = min(runtime.GOMAXPROCS(0), DefaultWorkers)
	}
	if c.Yield == nil {
		c.Yield = func(context.Context, time.Duration) error { return nil }
	}
	return &Engine{r: r, workers: c.Workers, yield: c.Yield}
}

// manifest reads a point's manifest.
func (e *Engine) manifest(ctx context.Context, p PointRef) (*repo.Manifest, error) {
	pk, content, err := p.pack()
	if err != nil {
		return nil, err
	}
	m, err := e.r.ReadManifest(ctx, pk, content)
	if err != nil {
		return nil, fmt.Errorf("read the manifest of %s: %w", p.Snapshot, err)
	}
	return m, nil
}

// VerifyReadable checks that a point's manifest and the root of its tree are
// there and whole, so that an increment can build on it.
func (e *Engine) VerifyReadable(ctx context.Context, p PointRef) error {
	m, err := e.manifest(ctx, p)
	if err != nil || m.Root.Ref.IsZero() {
		return err
	}
	_, err = e.r.LoadNode(ctx, m.Root.Ref, m.Root.Level)
	return err
}
