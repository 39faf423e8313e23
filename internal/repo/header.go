package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"cairn/internal/blobstore"
	"cairn/internal/errs"
	"cairn/internal/repo/keys"
)

// This file holds the header's blobs: two copies of each generation, of which
// the newest counts (FORMAT.md §3).

func headerCopies(generation uint64) [2]string {
	base := fmt.Sprintf("header/%016x", generation)
	return [2]string{base + ".a", base + ".b"}
}

// parseHeaderName reads a header blob's generation.
func parseHeaderName(name string) (generation uint64, ok bool) {
	hex, found := strings.CutPrefix(name, "header/")
	if !found || len(hex) < 16 {
		return 0, false
	}
	generation, err := strconv.ParseUint(hex[:16], 16, 64)
	c := headerCopies(generation)
	return generation, err == nil && (name == c[0] || name == c[1])
}

// generations tells which generations the store holds a copy of, and the
// newest. errs.NotFound: there is none.
func generations(ctx context.Context, store blobstore.Store) (all map[uint64]bool, newest uint64, err error) {
	all = make(map[uint64]bool)
	err = store.List(ctx, "header/", func(i blobstore.Info) error {
		if g, ok := parseHeaderName(i.Name); ok {
			all[g] = true
			newest = max(newest, g)
		}
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list the repository headers: %w", err)
	}
	if len(all) == 0 {
		return nil, 0, errs.New(errs.NotFound, "there is no repository; start with an empty folder or put the repository back")
	}
	return all, newest, nil
}

// openHeader opens the newest header with the key, its second copy if the
// first is damaged, and never an older generation: that would bring old key
// slots back.
func openHeader(ctx context.Context, store blobstore.Store, key Opener) (h *keys.Header, m keys.Master, err error) {
	err = newestHeader(ctx, store, func(b []byte) (*keys.Header, error) {
		h, m, err = keys.Decode(b, key)
		return h, err
	})
	return h, m, err
}

// newestHeader hands decode the copies of the newest header until one passes.
func newestHeader(ctx context.Context, store blobstore.Store, decode func([]byte) (*keys.Header, error)) error {
	_, newest, err := generations(ctx, store)
	if err != nil {
		return err
	}
	var all []error
	var refused error // by a whole copy: another's header, or not opened by the key
	damage := true
	for _, name := range headerCopies(newest) {
		b, err := readSmall(ctx, store, name, blobHeaderMax)
		if err == nil {
			var h *keys.Header
			if h, err = decode(b); err == nil {
				err = h.CheckGeneration(newest)
			}
			if err == nil {
				return nil
			}
			if refused == nil && !errs.Is(err, errs.Corrupt) {
				refused = err
			}
		}
		damage = damage && (isDamage(err) || errs.Is(err, errs.Corrupt))
		all = append(all, fmt.Errorf("%s: %w", name, err))
	}
	if refused != nil {
		return refused
	}
	if !damage {
		return fmt.Errorf("read the repository header: %w", errors.Join(all...))
	}
	return errs.Wrap(errs.Corrupt, errors.Join(all...), "the repository header cannot be read in any copy; put header/ back from a copy of the repository")
}

// verifyHeader checks a header blob of an open repository.
func verifyHeader(h *keys.Header, m keys.Master, name string, b []byte) error {
	generation, ok := parseHeaderName(name)
	if !ok {
		return errs.New(errs.Corrupt, "no header has the name %s", name)
	}
	return h.Verify(m, generation, b)
}

func putHeader(ctx context.Context, store blobstore.Store, h *keys.Header, m keys.Master) error {
	b := h.Encode(m)
	for _, name := range headerCopies(h.Generation) {
		if err := store.Put(ctx, name, b); err != nil {
			return fmt.Errorf("write the repository header: %w", err)
		}
	}
	return nil
}

// settleHeader finishes what a crash left of Init or of a change of slots, and
// writes a copy that was lost. A damaged copy is scrub's to report, not ours
// to hide; until it is gone older generations stay as they are.
func settleHeader(ctx context.Context, store blobstore.Store, h *keys.Header, m keys.Master) error {
	b := h.Encode(m)
	whole := 0
	for _, name := range headerCopies(h.Generation) {
		have, err := readSmall(ctx, store, name, blobHeaderMax)
		if errors.Is(err, blobstore.ErrNotFound) {
			have, err = b, store.Put(ctx, name, b)
		}
		if err != nil && !isDamage(err) {
			return fmt.Errorf("complete the repository header: %w", err)
		}
		if err == nil && bytes.Equal(have, b) {
			whole++
		}
	}
	if whole < len(headerCopies(h.Generation)) {
		return nil
	}
	return deleteOlderHeaders(ctx, store, h.Generation)
}

// deleteOlderHeaders takes away what generation replaces. Its copies are
// durable.
func deleteOlderHeaders(ctx context.Context, store blobstore.Store, generation uint64) error {
	all, _, err := generations(ctx, store)
	if err != nil {
		return err
	}
	for g := range all {
		if g >= generation {
			continue
		}
		for _, name := range headerCopies(g) {
			if err := store.Delete(ctx, name); err != nil {
				return fmt.Errorf("delete an older repository header: %w", err)
			}
		}
	}
	return nil
}
