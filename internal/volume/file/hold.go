package file

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/durable"
	"cairn/internal/errs"
	"cairn/internal/volume"
)

// A durable hold is the folder holdDir/<hold> with one reflink per volume,
// <vol-id>.raw, and the record. Written: folder, reflinks, record; removed in
// reverse. A folder without a record is a leftover and means nothing.
const recordName = "hold.json"

// record says that a hold is whole.
type record struct {
	Version int       `json:"version"` // 1
	Time    time.Time `json:"time"`    // the instant
	Volumes []string  `json:"volumes"` // vol-…
}

// errNoReflink says that a volume cannot be cloned into the holds' folder.
var errNoReflink = errors.New("no reflink possible")

func (d *disks) holdPath(hold string) string { return filepath.Join(d.holdDir, hold) }

// sweep removes holds that were never recorded or not removed to the end.
func (d *disks) sweep() error {
	entries, err := os.ReadDir(d.holdDir)
	if err != nil {
		return fmt.Errorf("list holds: %w", err)
	}
	for _, e := range entries {
		dir := d.holdPath(e.Name())
		if _, err := os.Stat(filepath.Join(dir, recordName)); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove an unfinished hold: %w", err)
		}
	}
	return nil
}

// ListHolds names the instants that a driver holds in its folder of holds, and
// leftovers of some. An absent folder has none.
func ListHolds(holdDir string) ([]string, error) {
	entries, err := os.ReadDir(holdDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list holds: %w", err)
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() && nameOK(e.Name()) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// clone makes reflinks of all guarded volumes, or errNoReflink if one cannot
// be. The guards are not needed any more when it returns; seal must follow.
func (d *disks) clone(hold string, guards []*guard) ([]*os.File, error) {
	dir := d.holdPath(hold)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, holdFailure("make", hold, err)
	}
	var files []*os.File
	undo := func(err error) error {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
		return errors.Join(err, os.RemoveAll(dir))
	}
	for _, g := range guards {
		f, err := os.OpenFile(filepath.Join(dir, g.id+".raw"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, undo(holdFailure("make", hold, err))
		}
		files = append(files, f)
		err = g.control(func(from int) error { return unix.IoctlFileClone(int(f.Fd()), from) })
		if noSpace(err) {
			return nil, undo(holdFailure("make", hold, err))
		}
		if errors.Is(err, unix.EIO) {
			return nil, undo(ioFailure(g.id, "read", err))
		}
		if err != nil {
			return nil, undo(fmt.Errorf("%w: %w", errNoReflink, err))
		}
	}
	for _, g := range guards {
		if err := g.unchanged(); err != nil {
			return nil, undo(busy(g.id, err, "was changed by another program at the moment of the snapshot"))
		}
	}
	return files, nil
}

// seal makes the reflinks durable and then says so in the record.
func (d *disks) seal(hold string, r record, files []*os.File) error {
	for _, f := range files {
		if err := f.Sync(); err != nil {
			return holdFailure("store", hold, err)
		}
	}
	text, err := json.Marshal(r)
	if err != nil {
		return holdFailure("store", hold, err)
	}
	dir := d.holdPath(hold)
	if err := durable.Write(filepath.Join(dir, recordName), text); err != nil {
		return holdFailure("store", hold, err)
	}
	if err := durable.SyncDir(d.holdDir); err != nil {
		return holdFailure("store", hold, err)
	}
	return nil
}

// removeHold removes a durable hold or what is left of one.
func (d *disks) removeHold(hold string) error {
	dir := d.holdPath(hold)
	switch err := os.Remove(filepath.Join(dir, recordName)); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return holdFailure("remove", hold, err)
	default:
		if err := durable.SyncDir(dir); err != nil {
			return holdFailure("remove", hold, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return holdFailure("remove", hold, err)
	}
	return nil
}

func holdFailure(doing, hold string, err error) error {
	if noSpace(err) {
		return errs.Wrap(errs.Full, err, "no space is left on the server's disk to hold the instant of job %s; free some and try again", hold)
	}
	return errs.Wrap(errs.Internal, fmt.Errorf("%s hold %s: %w", doing, hold, err), "")
}

// parseRecord reads a record; it fails unless every field makes sense.
func parseRecord(text []byte) (record, error) {
	var r record
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return record{}, err
	}
	if r.Version != 1 {
		return record{}, fmt.Errorf("version %d is unknown", r.Version)
	}
	if r.Time.IsZero() || len(r.Volumes) == 0 {
		return record{}, errors.New("time or volumes are missing")
	}
	for _, v := range r.Volumes {
		if !nameOK(v) {
			return record{}, fmt.Errorf("%q is no volume id", v)
		}
	}
	return r, nil
}

// Reopen gives the reflinks that Freeze recorded under hold.
func (d *disks) Reopen(ctx context.Context, hold string, specs []volume.Spec) (volume.Instant, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := d.begin(hold); err != nil {
		return nil, err
	}
	in, err := d.reopen(hold, specs)
	d.settle(hold, in)
	if err != nil {
		return nil, err
	}
	return in, nil
}

func (d *disks) reopen(hold string, specs []volume.Spec) (*instant, error) {
	dir := d.holdPath(hold)
	text, err := os.ReadFile(filepath.Join(dir, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, volume.ErrNoInstant
	}
	if err != nil {
		return nil, holdFailure("reopen", hold, err)
	}
	r, err := parseRecord(text)
	if err != nil {
		return nil, errs.Wrap(errs.Corrupt, fmt.Errorf("%w: record of hold %s: %w", volume.ErrNoInstant, hold, err),
			"the record of the instant held for job %s is damaged", hold)
	}
	in := &instant{disks: d, hold: hold, at: r.Time, durable: true}
	for _, s := range specs {
		if !slices.Contains(r.Volumes, s.ID) {
			return nil, errors.Join(fmt.Errorf("%w: volume %s is not in hold %s", volume.ErrNoInstant, s.ID, hold), in.free())
		}
		f, err := os.Open(filepath.Join(dir, s.ID+".raw"))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errors.Join(fmt.Errorf("%w: hold %s: %w", volume.ErrNoInstant, hold, err), in.free())
		}
		if err != nil {
			return nil, errors.Join(holdFailure("reopen", hold, err), in.free())
		}
		if err := in.add(s.ID, f); err != nil {
			return nil, errors.Join(holdFailure("reopen", hold, err), f.Close(), in.free())
		}
	}
	return in, nil
}
