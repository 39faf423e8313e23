package nbdvolume

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"cairn/internal/durable"
	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/volume"
)

// A record says from which content the changes of a volume can be told: the
// file Dir/<vol-id>.json, a line with the SHA-256 of the rest, and JSON. Only
// volumes have one whose owner lets bitmaps be believed.
type record struct {
	Version    int               `json:"version"` // 1
	Identity   string            `json:"identity"`
	SizeBytes  int64             `json:"size_bytes"`
	Checkpoint volume.Checkpoint `json:"checkpoint"` // of the point
	Bitmaps    []bitmapRecord    `json:"bitmaps"`    // that were there at its instant
	Audit      int64             `json:"audit"`      // where the next audit begins
}

type bitmapRecord struct {
	Context    string         `json:"context"`
	DirtyBytes int64          `json:"dirty_bytes"`
	Witnesses  []extent.Range `json:"witnesses"`
}

const recordVersion = 1

func (d *Driver) recordPath(id string) string { return filepath.Join(d.cfg.Dir, id+".json") }

// readRecord reads what is known of a volume; nil: nothing. A damaged record
// is nothing: then everything is read.
func (d *Driver) readRecord(id string) (*record, error) {
	text, err := os.ReadFile(d.recordPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, recordFailure("read", id, err)
	}
	r, err := parseRecord(text)
	if err != nil {
		d.log.Warn("the record of a volume's change tracking is damaged; everything is read", "volume", id, "error", err)
		return nil, nil
	}
	return r, nil
}

func parseRecord(text []byte) (*record, error) {
	sum, body, ok := bytes.Cut(text, []byte("\n"))
	if want := sha256.Sum256(body); !ok || string(sum) != hex.EncodeToString(want[:]) {
		return nil, errors.New("its checksum is wrong")
	}
	var r record
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return nil, err
	}
	if r.Version != recordVersion || r.Checkpoint == "" || r.SizeBytes <= 0 || r.Audit < 0 {
		return nil, fmt.Errorf("version %d with values that cannot be", r.Version)
	}
	return &r, nil
}

// writeRecord replaces a volume's record, durably.
func (d *Driver) writeRecord(id string, r *record) error {
	body, err := json.Marshal(r)
	if err != nil {
		return recordFailure("write", id, err)
	}
	sum := sha256.Sum256(body)
	text := append([]byte(hex.EncodeToString(sum[:])+"\n"), body...)
	if err := durable.Write(d.recordPath(id), text); err != nil {
		return recordFailure("write", id, err)
	}
	return nil
}

// dropRecord forgets what is known of a volume, durably.
func (d *Driver) dropRecord(id string) error {
	err := os.Remove(d.recordPath(id))
	if err == nil || errors.Is(err, fs.ErrNotExist) { // an earlier removal may not be durable yet
		err = durable.SyncDir(d.cfg.Dir)
	}
	if err != nil {
		return recordFailure("remove", id, err)
	}
	return nil
}

func recordFailure(doing, id string, err error) error {
	return errs.Wrap(errs.Internal, fmt.Errorf("%s the tracking record of volume %s: %w", doing, id, err), "")
}
