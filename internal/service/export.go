package service

import (
	"context"
	"errors"
	"io"
	"sync"

	"cairn/internal/engine"
	"cairn/internal/volume"
)

// exportPrefix marks the holders of locks and pins that streams have. They
// are no jobs, so the next start releases what a crash left.
const exportPrefix = "export-"

// openImage is an image that holds a lock or a pin until it is closed.
type openImage struct {
	engine.Image
	check func(ctx context.Context) error // after the last byte; nil: nothing to check
	once  sync.Once
	close func() error
	err   error
}

// WriteTo streams the image and then makes sure that it was one moment.
func (i *openImage) WriteTo(ctx context.Context, w io.Writer, format engine.Format) error {
	if err := i.Image.WriteTo(ctx, w, format); err != nil || i.check == nil {
		return err
	}
	return i.check(ctx)
}

// Close may be called more than once.
func (i *openImage) Close() error {
	i.once.Do(func() { i.err = i.close() })
	return i.err
}

// ExportSnapshot opens a point for streaming. It cannot be deleted until
// Close.
func (s *Service) ExportSnapshot(ctx context.Context, zone, id string) (engine.Image, error) {
	ids, err := s.checkSnapshotSet(SnapshotSet{Origin: Origin{Zone: zone}, IDs: []string{id}})
	if err != nil {
		return nil, err
	}
	holder := exportPrefix + newUUID()
	var p Snapshot
	err = s.store.Update(ctx, func(tx Tx) error {
		if p, err = idlePoint(tx, zone, ids[0]); err != nil {
			return err
		}
		return tx.Pin(holder, p.ID)
	})
	if err != nil {
		return nil, err
	}
	free := func() error { return s.releaseHolder(ctx, holder) }
	image, err := s.engine.OpenImage(ctx, p.ref())
	if err != nil {
		return nil, errors.Join(err, free())
	}
	return &openImage{Image: image, close: func() error { return errors.Join(image.Close(), free()) }}, nil
}

// releaseHolder lets go of locks and pins even if the caller's ctx has ended.
func (s *Service) releaseHolder(ctx context.Context, holder string) error {
	return s.store.Update(context.WithoutCancel(ctx), func(tx Tx) error { return release(tx, holder) })
}

// ExportVolume opens a volume as it is now for streaming. Nothing of this
// service changes it until Close; the stream fails if somebody else did.
func (s *Service) ExportVolume(ctx context.Context, zone, id string) (engine.Image, error) {
	if err := s.checkZone(zone); err != nil {
		return nil, err
	}
	ids, err := checkIDs("volume", volumePrefix, []string{id})
	if err != nil {
		return nil, err
	}
	holder := exportPrefix + newUUID()
	var v Volume
	err = s.store.Update(ctx, func(tx Tx) error {
		if v, err = usableVolume(tx, zone, ids[0]); err != nil {
			return err
		}
		return tx.Lock(holder, v.ID)
	})
	if err != nil {
		return nil, err
	}
	image, err := s.freezeForExport(ctx, v, holder)
	if err != nil {
		return nil, errors.Join(err, s.releaseHolder(ctx, holder))
	}
	return image, nil
}

func (s *Service) freezeForExport(ctx context.Context, v Volume, holder string) (engine.Image, error) {
	d, err := s.driver(v)
	if err != nil {
		return nil, err
	}
	instant, err := d.Freeze(ctx, holder, []volume.Spec{v.spec()})
	if err != nil {
		return nil, err
	}
	thaw := func() error {
		return errors.Join(instant.Close(), d.Drop(context.WithoutCancel(ctx), holder))
	}
	image, err := s.engine.SourceImage(ctx, instant.Source(0))
	if err != nil {
		return nil, errors.Join(err, thaw())
	}
	return &openImage{
		Image: image,
		check: instant.Check,
		close: func() error { return errors.Join(image.Close(), thaw(), s.releaseHolder(ctx, holder)) },
	}, nil
}
