package engine

import (
	"context"

	"cairn/internal/repo"
)

// worker turns one window at a time into slots.
type worker struct {
	c      *capture
	ids    *repo.IDs
	frames *repo.Frames
	gather []byte // chunks of a frame that do not lie side by side
}

// hash names every chunk of a window, looks each up at the same offset in the
// parent, in the session and in the index, and stores the new ones.
func (wk *worker) hash(ctx context.Context, win *window) (*hashed, error) {
	h := &hashed{seq: win.seq, leaf: win.leaf, bytes: win.bytes}
	// Whoever waits for a chunk of this window must not wait for ever.
	defer close(win.ready)
	var old *repo.Node
	if wk.c.parent != nil {
		var err error
		if old, err = wk.c.e.r.Leaf(ctx, *wk.c.parent, win.leaf); err != nil {
			return nil, err
		}
	}
	var mine [fanout]*repo.Claim
	fresh := make([]int, 0, fanout)
	for i := range fanout {
		if win.todo&(1<<i) == 0 && wk.c.plan.tracked() && old != nil {
			h.slots[i].ID, h.slots[i].Loc = old.Slots[i].ID, old.Slots[i].Loc
		}
		if win.have&(1<<i) == 0 {
			continue
		}
		id := wk.ids.Of(win.buf[i*chunkSize : (i+1)*chunkSize])
		if id.IsZero() {
			continue
		}
		h.slots[i].ID = id
		if old != nil && old.Slots[i].ID == id {
			h.slots[i].Loc = old.Slots[i].Loc
			continue
		}
		claim, loc, isMine, err := wk.c.s.Find(ctx, id, win.ready)
		switch {
		case err != nil:
			return nil, err
		case isMine:
			mine[i] = claim
			fresh = append(fresh, i)
		case claim != nil:
			h.claims[i] = claim
		default:
			h.slots[i].Loc = loc
		}
	}
	h.fresh = int64(len(fresh))
	return h, wk.store(ctx, win, h, &mine, fresh)
}

// store puts new chunks into frames of neighbours, all of a window together.
func (wk *worker) store(ctx context.Context, win *window, h *hashed, mine *[fanout]*repo.Claim, fresh []int) error {
	wk.gather = wk.gather[:0]
	for left := fresh; len(left) > 0; {
		n := min(len(left), repo.FrameChunks)
		group := left[:n]
		left = left[n:]
		ids := make([]repo.ID, n)
		for k, i := range group {
			ids[k] = h.slots[i].ID
		}
		place, err := wk.frames.Add(ids, wk.plain(win, group))
		if err != nil {
			return err
		}
		for k, i := range group {
			h.slots[i].Late, h.slots[i].Sub = place, uint8(k)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	if err := wk.frames.Store(ctx, wk.c.w); err != nil {
		return err
	}
	for _, i := range fresh {
		mine[i].Place, mine[i].Sub = h.slots[i].Late, h.slots[i].Sub
	}
	return nil
}

// plain is the bytes of a group of chunks, copied only if they do not lie
// side by side. It is valid as long as the window.
func (wk *worker) plain(win *window, group []int) []byte {
	first, last := group[0], group[len(group)-1]
	if last-first == len(group)-1 {
		return win.buf[first*chunkSize : (last+1)*chunkSize]
	}
	at := len(wk.gather)
	for _, i := range group {
		wk.gather = append(wk.gather, win.buf[i*chunkSize:(i+1)*chunkSize]...)
	}
	return wk.gather[at:]
}
