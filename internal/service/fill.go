package service

import (
	"context"
	"strings"
	"time"

	"cairn/internal/errs"
)

// fillEvery is when volumes are looked after that could not be filled.
const fillEvery = time.Minute

// FillVolumes lets what volumes still need of the repository be fetched in the
// background, all or none. Of volumes that are filled it is harmless.
func (s *Service) FillVolumes(ctx context.Context, in VolumeSet) error {
	if err := s.checkZone(in.Zone); err != nil {
		return err
	}
	ids, err := checkIDs("volume", volumePrefix, in.IDs)
	if err != nil {
		return err
	}
	err = s.store.Update(ctx, func(tx Tx) error {
		for _, id := range ids {
			v, err := tx.Volume(in.Zone, id)
			if err != nil {
				return err
			}
			v.OnDemand = false
			if err := tx.UpdateVolume(v); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		s.fillSoon()
	}
	return err
}

// fillSoon tells the filler that there is something to do.
func (s *Service) fillSoon() {
	select {
	case s.bases.wake <- struct{}{}:
	default:
	}
}

// Fill fetches, until ctx ends, what volumes still need of points, one volume
// after the other, so that they become independent of the repository.
func (s *Service) Fill(ctx context.Context) {
	if s.lives == nil || s.refused != "" {
		<-ctx.Done()
		return
	}
	timer := time.NewTicker(fillEvery)
	defer timer.Stop()
	for {
		if err := s.fillAll(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("fill volumes", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-s.bases.wake:
		}
	}
}

func (s *Service) fillAll(ctx context.Context) error {
	var holders []string
	err := s.store.View(ctx, func(tx Tx) (err error) {
		holders, err = tx.Holders()
		return err
	})
	if err != nil {
		return err
	}
	for _, h := range holders {
		id, ok := strings.CutPrefix(h, basePrefix)
		if !ok {
			continue
		}
		if err := s.fillOne(ctx, id); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errs.Is(err, errs.NotFound) {
				continue // it was deleted meanwhile
			}
			s.log.Warn("a volume could not be filled; trying again later", "volume", id, "error", err)
		}
	}
	return nil
}

// fillOne fills a volume and lets go of the point.
func (s *Service) fillOne(ctx context.Context, id string) error {
	var v Volume
	err := s.store.View(ctx, func(tx Tx) (err error) {
		v, err = tx.Volume("", id)
		return err
	})
	if err != nil {
		return err
	}
	if v.OnDemand {
		return nil
	}
	begin := time.Now()
	if err := s.lives.Fill(ctx, v.spec(), s.pace); err != nil {
		return err
	}
	s.bases.mu.Lock()
	defer s.bases.mu.Unlock()
	// A rollback may have given it another base meanwhile.
	if snapshot, err := s.neededPoint(ctx, v); err != nil || snapshot != "" {
		return err
	}
	s.log.Info("volume filled", "volume", id, "took", time.Since(begin))
	return s.store.Update(ctx, func(tx Tx) error { return rebase(tx, id, "") })
}

// pace keeps the filler at its rate.
func (s *Service) pace(ctx context.Context, n int64) error {
	if s.bases.rate <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(time.Duration(float64(n) / float64(s.bases.rate) * float64(time.Second)))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
