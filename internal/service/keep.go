package service

import (
	"context"
	"time"

	"cairn/internal/errs"
)

// Keep does until ctx ends what nobody asks for: it counts the uptime, ends
// points whose time in the recycle bin is over, prunes when that left garbage or
// space runs low, and scrubs a little every day.
func (s *Service) Keep(ctx context.Context) {
	if s.refused != "" {
		<-ctx.Done() // nothing may be changed
		return
	}
	tick := min(max(s.recycle/20, time.Second), time.Minute)
	timer := time.NewTicker(tick)
	defer timer.Stop()
	last, rest := time.Now(), time.Duration(0)
	for {
		// What a tick adds is capped, so that a process that was stopped for a
		// day, or a clock that jumps, does not empty the bin.
		rest += min(time.Since(last), 2*tick)
		last = time.Now()
		seconds := rest.Truncate(time.Second)
		rest -= seconds
		if err := s.keepOnce(ctx, int64(seconds/time.Second)); err != nil && ctx.Err() == nil {
			s.log.Error("end deleted points and prune", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
	}
}

// keepOnce is one tick. The uptime grows by the seconds.
func (s *Service) keepOnce(ctx context.Context, seconds int64) error {
	var now, pruneDue, scrubbed int64
	err := s.store.Update(ctx, func(tx Tx) error {
		was, err := numberSetting(tx, uptimeKey)
		if err != nil {
			return err
		}
		if pruneDue, err = numberSetting(tx, pruneDueKey); err != nil {
			return err
		}
		if scrubbed, err = numberSetting(tx, scrubbedKey); err != nil {
			return err
		}
		now = was + seconds
		return setNumber(tx, uptimeKey, now)
	})
	if err != nil {
		return err
	}
	ceased, err := s.expire(ctx, now-int64(s.recycle/time.Second), nil)
	if err != nil {
		return err
	}
	if ceased > 0 {
		s.log.Info("the time of deleted points in the recycle bin is over", "points", ceased)
	}
	low := s.lowSpace != nil && s.lowSpace() && now-s.lowPruned >= int64(lowPruneEvery/time.Second)
	switch {
	case ceased > 0 || pruneDue != 0 || low:
		s.lowPruned = now
		_, err = s.Prune(ctx, s.ownOrigin(), PruneOptions{})
	case s.scrubEvery > 0 && now-scrubbed >= int64(s.scrubEvery/time.Second):
		_, err = s.Scrub(ctx, s.ownOrigin(), ScrubOptions{Budget: s.scrubBudget})
		if err == nil {
			err = s.store.Update(ctx, func(tx Tx) error { return setNumber(tx, scrubbedKey, now) })
		}
	}
	if errs.Is(err, errs.Busy) {
		return nil // the next tick tries again
	}
	return err
}

// ownOrigin is what a job says that nobody asked for. The first zone stands for all.
func (s *Service) ownOrigin() Origin {
	first := ""
	for zone := range s.zones {
		if first == "" || zone < first {
			first = zone
		}
	}
	return Origin{Zone: first, RequestID: "server"}
}

const (
	// scrubbedKey is the setting with the uptime of the last scrub of Keep's.
	scrubbedKey = "scrubbed"
	// lowPruneEvery is how often low space alone makes a prune.
	lowPruneEvery = 10 * time.Minute
)
