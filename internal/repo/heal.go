package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"cairn/internal/blobstore"
	"cairn/internal/repo/pack"
)

// HealCopy writes a damaged or missing copy of a blob anew from another one,
// which is read whole and checked first. A crash halfway leaves the copy
// missing: scrub says so, and healing it again is harmless. errs.Corrupt: no
// other copy is whole.
func (r *Repo) HealCopy(ctx context.Context, name string) error {
	good, err := r.wholeCopy(ctx, name)
	if err != nil {
		return err
	}
	if err := r.store.Delete(ctx, name); err != nil {
		return fmt.Errorf("delete the damaged copy %s: %w", name, err)
	}
	if err := r.store.Put(ctx, name, good); err != nil {
		return fmt.Errorf("write the copy %s anew: %w", name, err)
	}
	return nil
}

// wholeCopy is the bytes that the blob should have, from another copy of it.
func (r *Repo) wholeCopy(ctx context.Context, name string) ([]byte, error) {
	p, header, ok := ParseBlob(name)
	if !ok {
		return nil, fmt.Errorf("%w: no blob of a repository has the name %s", pack.ErrDamaged, name)
	}
	if header {
		return r.header.Encode(r.master), nil // the newest is the only one that is kept
	}
	x, err := r.NewReader()
	if err != nil {
		return nil, err
	}
	defer x.Close()
	var all []error
	for _, copy := range p.Copies() {
		if copy == name {
			continue
		}
		b, err := readSmall(ctx, r.store, copy, pack.MaxBlob)
		if err == nil {
			var c Counts
			// Checking overwrites what it is given.
			err = x.checkBytes(copy, p, false, bytes.Clone(b), &c)
		}
		if err == nil {
			return b, nil
		}
		if !isDamage(err) && !errors.Is(err, blobstore.ErrNotFound) {
			return nil, err
		}
		all = append(all, err)
	}
	return nil, damage("blob "+name, errors.Join(append(all, fmt.Errorf("%w: it has no whole copy", pack.ErrDamaged))...))
}
