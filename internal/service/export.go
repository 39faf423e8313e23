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
// Close. errs.Conflict: a scrub found it damaged; see SalvageSnapshot.
func (s *Service) ExportSnapshot(ctx context.Context, zone, id string) (engine.Image, error) {
	if _, err := s.checkSnapshotSet(SnapshotSet{Origin: Origin{Zone: zone}, IDs: []string{id}}); err != nil {
		return nil, err
	}
	return s.exportPoint(ctx, zone, id)
}

func (s *Service) exportPoint(ctx context.Context, zone, id string) (engine.Image, error) {
	p, free, err := s.pinPoint(ctx, zone, id, restorablePoint)
	if err != nil {
		return nil, err
	}
	image, err := s.engine.OpenImage(ctx, p.ref())
	if err != nil {
		return nil, errors.Join(err, free())
	}
	return &openImage{Image: image, close: func() error { return errors.Join(image.Close(), free()) }}, nil
}

// openSalvage is a salvage that holds a pin until it is closed.
type openSalvage struct {
	engine.Salvage
	once  sync.Once
	close func() error
	err   error
}

// Close may be called more than once.
func (o *openSalvage) Close() error {
	o.once.Do(func() { o.err = o.close() })
	return o.err
}

// SalvageSnapshot opens a point for streaming what is left of it, damaged or
// not. It cannot be deleted until Close. errs.Corrupt: nothing is left.
func (s *Service) SalvageSnapshot(ctx context.Context, zone, id string) (engine.Salvage, error) {
	if _, err := s.checkSnapshotSet(SnapshotSet{Origin: Origin{Zone: zone}, IDs: []string{id}}); err != nil {
		return nil, err
	}
	p, free, err := s.pinPoint(ctx, zone, id, idlePoint)
	if err != nil {
		return nil, err
	}
	salvage, err := s.engine.OpenSalvage(ctx, p.ref())
	if err != nil {
		return nil, errors.Join(err, free())
	}
	return &openSalvage{Salvage: salvage, close: func() error { return errors.Join(salvage.Close(), free()) }}, nil
}

// pinPoint keeps a point that admit lets pass from being deleted until free.
// Where nothing may be changed nothing is deleted either, and no pin is needed.
func (s *Service) pinPoint(ctx context.Context, zone, id string, admit func(tx Tx, zone, id string) (Snapshot, error)) (p Snapshot, free func() error, err error) {
	holder := exportPrefix + newUUID()
	find := func(tx Tx) (err error) {
		p, err = admit(tx, zone, id)
		return err
	}
	if s.refused != "" {
		err = s.store.View(ctx, find)
		return p, func() error { return nil }, err
	}
	err = s.store.Update(ctx, func(tx Tx) error {
		if err := find(tx); err != nil {
			return err
		}
		return tx.Pin(holder, p.ID)
	})
	if err != nil {
		// It may be pinned all the same, if only the answer was lost.
		return p, nil, errors.Join(err, s.releaseHolder(ctx, holder))
	}
	return p, func() error { return s.releaseHolder(ctx, holder) }, nil
}

// hold runs take, which locks or pins for holder. If it failed nothing is held,
// also where only its answer was lost.
func (s *Service) hold(ctx context.Context, holder string, take func(tx Tx) error) error {
	taken := false
	err := s.store.Update(ctx, func(tx Tx) error {
		err := take(tx)
		taken = err == nil
		return err
	})
	if err != nil && taken {
		err = errors.Join(err, s.releaseHolder(ctx, holder))
	}
	return err
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
	err = s.hold(ctx, holder, func(tx Tx) error {
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
	instant, err := d.Freeze(ctx, holder, []volume.Spec{v.spec()}, nil)
	if err != nil {
		return nil, err
	}
	thaw := func() error {
		defer s.fillSoon() // while a volume is read it keeps its base
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
