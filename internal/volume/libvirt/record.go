package virtvolume

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"cairn/internal/durable"
	"cairn/internal/volume"
)

// record says from which content the changes of a volume can be told, and by
// which of the domain's checkpoints: the file records/<id>.json. A damaged one is
// none: then everything is read.
type record struct {
	Path       string            `json:"path"`
	File       string            `json:"file"`       // which file was there
	Size       int64             `json:"size"`       // bytes
	Checkpoint volume.Checkpoint `json:"checkpoint"` // of the point
	Mark       string            `json:"mark"`       // libvirt's checkpoint of the same moment
	Audit      int64             `json:"audit"`      // where the next audit begins
}

func (d *Driver) recordPath(id string) string {
	return filepath.Join(d.cfg.Dir, "records", id+".json")
}

func (d *Driver) readRecord(id string) (record, error) {
	b, err := os.ReadFile(d.recordPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, nil
	}
	if err != nil {
		return record{}, fmt.Errorf("read the tracking record of volume %s: %w", id, err)
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil || r.Audit < 0 || r.Mark != "" && !plainName(r.Mark) {
		d.log.Warn("the record of a volume's change tracking is damaged; everything is read", "volume", id, "error", err)
		return record{}, nil
	}
	return r, nil
}

func (d *Driver) writeRecord(id string, r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := durable.Write(d.recordPath(id), b); err != nil {
		return fmt.Errorf("write the tracking record of volume %s: %w", id, err)
	}
	return nil
}

// marksOf is the checkpoints of a domain that records build on. prefix begins the
// paths of its disks.
func (d *Driver) marksOf(prefix string) (map[string]bool, error) {
	names, err := filepath.Glob(filepath.Join(d.cfg.Dir, "records", "*.json"))
	if err != nil {
		return nil, err
	}
	marks := map[string]bool{}
	for _, name := range names {
		r, err := d.readRecord(strings.TrimSuffix(filepath.Base(name), ".json"))
		if err != nil {
			return nil, err
		}
		if r.Mark != "" && strings.HasPrefix(r.Path, prefix) {
			marks[r.Mark] = true
		}
	}
	return marks, nil
}
