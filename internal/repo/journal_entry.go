package repo

import (
	"encoding/hex"
	"fmt"
	"time"

	"cairn/internal/errs"
	"cairn/internal/repo/pack"
)

// EntryKind says what an entry of the journal is about (FORMAT.md §11).
type EntryKind uint8

// Entry kinds. Machines are volumes, images are points (FORMAT.md §11).
const (
	PointEntry  EntryKind = 1
	VolumeEntry EntryKind = 2
)

func (k EntryKind) String() string {
	switch k {
	case PointEntry:
		return "point"
	case VolumeEntry:
		return "volume"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// JournalEntry is the whole state of one object.
type JournalEntry struct {
	Kind    EntryKind
	ID      string
	Removed bool          // the object is forgotten; nothing else is set
	Point   JournalPoint  // of a PointEntry
	Volume  JournalVolume // of a VolumeEntry
}

// JournalPoint is a point as it is now. Times are to the microsecond.
type JournalPoint struct {
	Resource     string
	SizeBytes    int64 // of the volume
	Full         bool
	Parent       string
	ChainRoot    string
	Job          string
	SnapshotTime time.Time
	CreateTime   time.Time
	AddedBytes   int64
	Name         string
	Description  string
	ResourceType string
	ResourceName string
	VolumeType   int64
	Zone         string
	Group        string
	Consistency  string
	CBT          string
	Reason       string

	Status     string
	StatusTime time.Time
	Pack       string // hex id of the point pack; "": never committed
	Content    string // hex content hash of the point pack; "" with Pack
	Head       bool
	Damaged    bool
	Taken      bool
}

// JournalVolume is a volume as it is now.
type JournalVolume struct {
	Driver      string
	SizeBytes   int64
	Path        string
	Identity    string
	Status      string
	MixedJob    string
	Name        string
	Description string
	Type        int64
	Zone        string
	CreateTime  time.Time
	StatusTime  time.Time

	Instance string // the machine that has it; of a system disk its own id
	Device   string
	CPUs     int64 // of a system disk's machine
	Memory   int64 // likewise, bytes
	Image    string
}

// entryHeader precedes an entry's fields: length, kind, removed.
const entryHeader = 6

// appendEntry appends an entry to a record's plain bytes.
func appendEntry(b []byte, e JournalEntry) ([]byte, error) {
	w := fieldWriter{b: append(b, 0, 0, 0, 0, byte(e.Kind), byte(flagNum(e.Removed)))}
	switch {
	case e.Removed:
		w.str(0x8001, e.ID)
	case e.Kind == PointEntry:
		if err := e.Point.write(&w, e.ID); err != nil {
			return b, err
		}
	case e.Kind == VolumeEntry:
		e.Volume.write(&w, e.ID)
	default:
		return b, fmt.Errorf("the journal has no entries of %s", e.Kind)
	}
	n := len(w.b) - len(b)
	if n > pack.MaxPlain {
		return b, fmt.Errorf("the journal entry of %s has %d bytes, more than a record holds", e.ID, n)
	}
	le.PutUint32(w.b[len(b):], uint32(n-entryHeader))
	return w.b, nil
}

func (p *JournalPoint) write(w *fieldWriter, id string) error {
	place, err := hex.DecodeString(p.Pack + p.Content)
	if err != nil || (len(place) != 0 && (len(p.Pack) != 2*len(PackID{}) || len(p.Content) != 2*len(ID{}))) {
		return fmt.Errorf("point %s: pack %q and content hash %q are not 32 and 64 hex digits", id, p.Pack, p.Content)
	}
	w.optTime(0x0009, p.CreateTime)
	w.optNum(0x000a, p.AddedBytes)
	w.opt(0x0010, p.Name)
	w.opt(0x0011, p.Description)
	w.opt(0x0012, p.ResourceType)
	w.opt(0x0013, p.ResourceName)
	w.optNum(0x0014, p.VolumeType)
	w.opt(0x0015, p.Zone)
	w.opt(0x0016, p.Group)
	w.opt(0x0017, p.Consistency)
	w.opt(0x0018, p.CBT)
	w.opt(0x0019, p.Reason)
	w.optTime(0x0020, p.StatusTime)
	w.optNum(0x0021, flagNum(p.Damaged))
	w.optNum(0x0022, flagNum(p.Taken))
	w.str(0x8001, id)
	w.str(0x8002, p.Resource)
	w.num(0x8003, p.SizeBytes)
	w.num(0x8005, flagNum(p.Full))
	w.str(0x8006, p.Parent)
	w.str(0x8007, p.ChainRoot)
	w.str(0x8008, p.Job)
	w.num(0x8009, unixMicro(p.SnapshotTime))
	w.str(0x8020, p.Status)
	w.field(0x8021, place)
	w.num(0x8022, flagNum(p.Head))
	return nil
}

func (p *JournalPoint) read(d *fieldReader) {
	p.CreateTime = d.optTime(0x0009)
	p.AddedBytes = d.optNum(0x000a)
	p.Name, p.Description = d.opt(0x0010), d.opt(0x0011)
	p.ResourceType, p.ResourceName = d.opt(0x0012), d.opt(0x0013)
	p.VolumeType = d.optNum(0x0014)
	p.Zone, p.Group = d.opt(0x0015), d.opt(0x0016)
	p.Consistency, p.CBT, p.Reason = d.opt(0x0017), d.opt(0x0018), d.opt(0x0019)
	p.StatusTime = d.optTime(0x0020)
	p.Damaged, p.Taken = d.optFlag(0x0021), d.optFlag(0x0022)
	p.Resource, p.SizeBytes, p.Full = d.str(0x8002), d.num(0x8003), d.flag(0x8005)
	p.Parent, p.ChainRoot, p.Job = d.str(0x8006), d.str(0x8007), d.str(0x8008)
	p.SnapshotTime = fromUnixMicro(d.num(0x8009))
	p.Status = d.str(0x8020)
	place := d.take(0x8021)
	switch len(place) {
	case 0:
	case len(PackID{}) + len(ID{}):
		p.Pack, p.Content = hex.EncodeToString(place[:len(PackID{})]), hex.EncodeToString(place[len(PackID{}):])
	default:
		d.fail("has no pack in field 0x8021")
	}
	p.Head = d.flag(0x8022)
}

func (v *JournalVolume) write(w *fieldWriter, id string) {
	w.opt(0x0010, v.Name)
	w.opt(0x0011, v.Description)
	w.optNum(0x0012, v.Type)
	w.opt(0x0013, v.Zone)
	w.optTime(0x0014, v.CreateTime)
	w.optTime(0x0015, v.StatusTime)
	w.opt(0x0016, v.Instance)
	w.opt(0x0017, v.Device)
	w.optNum(0x0018, v.CPUs)
	w.optNum(0x0019, v.Memory)
	w.opt(0x001a, v.Image)
	w.str(0x8001, id)
	w.str(0x8002, v.Driver)
	w.num(0x8003, v.SizeBytes)
	w.str(0x8004, v.Path)
	w.str(0x8005, v.Identity)
	w.str(0x8006, v.Status)
	w.str(0x8007, v.MixedJob)
}

func (v *JournalVolume) read(d *fieldReader) {
	v.Name, v.Description = d.opt(0x0010), d.opt(0x0011)
	v.Type, v.Zone = d.optNum(0x0012), d.opt(0x0013)
	v.CreateTime, v.StatusTime = d.optTime(0x0014), d.optTime(0x0015)
	v.Instance, v.Device = d.opt(0x0016), d.opt(0x0017)
	v.CPUs, v.Memory, v.Image = d.optNum(0x0018), d.optNum(0x0019), d.opt(0x001a)
	v.Driver, v.SizeBytes = d.str(0x8002), d.num(0x8003)
	v.Path, v.Identity = d.str(0x8004), d.str(0x8005)
	v.Status, v.MixedJob = d.str(0x8006), d.str(0x8007)
}

// decodeEntries reads a record's plain bytes.
func decodeEntries(b []byte) ([]JournalEntry, error) {
	var out []JournalEntry
	for len(b) > 0 {
		if len(b) < entryHeader || int64(len(b)) < entryHeader+int64(le.Uint32(b)) {
			return nil, fmt.Errorf("%w: a journal entry is cut", pack.ErrDamaged)
		}
		n := entryHeader + int(le.Uint32(b))
		e, err := decodeEntry(EntryKind(b[4]), b[5], b[entryHeader:n])
		if err != nil {
			return nil, err
		}
		out = append(out, e)
		b = b[n:]
	}
	return out, nil
}

func decodeEntry(kind EntryKind, removed byte, fields []byte) (JournalEntry, error) {
	e := JournalEntry{Kind: kind, Removed: removed == 1}
	if removed > 1 {
		return e, fmt.Errorf("%w: a journal entry is neither present nor removed", pack.ErrDamaged)
	}
	if kind != PointEntry && kind != VolumeEntry {
		return e, errs.New(errs.Conflict, "the journal has entries of %s, which this program does not know; use a newer program", kind)
	}
	d := readFields("the journal's entry of a "+kind.String(), fields)
	e.ID = d.str(0x8001)
	switch {
	case e.Removed:
	case kind == PointEntry:
		e.Point.read(d)
	default:
		e.Volume.read(d)
	}
	if e.ID == "" {
		d.fail("names nothing")
	}
	return e, d.end()
}
