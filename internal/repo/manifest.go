package repo

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"cairn/internal/repo/addr"
	"cairn/internal/repo/pack"
	"cairn/internal/repo/tree"
)

// Manifest is the record that names a point's tree (FORMAT.md §7).
type Manifest struct {
	Snapshot     string
	Resource     string
	SizeBytes    int64
	Root         Root
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
	GroupSize    int64 // points of the group; 0: not known
	Consistency  string
	CBT          string
	Reason       string
}

const (
	manifestMax  = 64 << 10
	pointBlobMax = 4 << 20
)

var le = binary.LittleEndian

// Encode gives the manifest's plain bytes.
func (m *Manifest) Encode() []byte {
	var w fieldWriter
	w.num(0x0009, m.CreateTime.UnixMicro())
	w.num(0x000a, m.AddedBytes)
	w.str(0x0010, m.Name)
	w.str(0x0011, m.Description)
	w.str(0x0012, m.ResourceType)
	w.str(0x0013, m.ResourceName)
	w.num(0x0014, m.VolumeType)
	w.str(0x0015, m.Zone)
	w.str(0x0016, m.Group)
	w.str(0x0017, m.Consistency)
	w.str(0x0018, m.CBT)
	w.str(0x0019, m.Reason)
	w.optNum(0x001a, m.GroupSize)
	w.str(0x8001, m.Snapshot)
	w.str(0x8002, m.Resource)
	w.num(0x8003, m.SizeBytes)
	w.field(0x8004, encodeRoot(m.Root))
	w.num(0x8005, flagNum(m.Full))
	w.str(0x8006, m.Parent)
	w.str(0x8007, m.ChainRoot)
	w.str(0x8008, m.Job)
	w.num(0x8009, m.SnapshotTime.UnixMicro())
	return w.b
}

func encodeRoot(r Root) []byte {
	b := []byte{r.Level}
	if r.Ref.IsZero() {
		return b
	}
	b = append(b, r.Ref.ID[:]...)
	b = append(b, byte(r.Ref.Loc.Pack.Kind))
	b = append(b, r.Ref.Loc.Pack.ID[:]...)
	b = le.AppendUint32(b, r.Ref.Loc.Off)
	b = le.AppendUint32(b, r.Ref.Loc.Len)
	if r.Ref.Loc.Pack.Kind == addr.Point {
		b = append(b, byte(len(r.Ref.Loc.Pack.Snapshot)))
		b = append(b, r.Ref.Loc.Pack.Snapshot...)
	}
	return b
}

func decodeRoot(b []byte) (Root, error) {
	var r Root
	bad := fmt.Errorf("%w: the manifest's root is malformed", pack.ErrDamaged)
	if len(b) < 1 || b[0] > 9 {
		return r, bad
	}
	r.Level = b[0]
	if b = b[1:]; len(b) == 0 {
		return r, nil
	}
	if len(b) < 57 {
		return r, bad
	}
	r.Ref.ID = ID(b)
	r.Ref.Loc = Loc{Pack: Pack{Kind: addr.Kind(b[32]), ID: PackID(b[33:49])}, Off: le.Uint32(b[49:]), Len: le.Uint32(b[53:])}
	rest := b[57:]
	switch r.Ref.Loc.Pack.Kind {
	case addr.Node:
		if len(rest) != 0 {
			return r, bad
		}
	case addr.Point:
		if len(rest) < 1 || len(rest) != 1+int(rest[0]) || !tree.ValidSnapshot(string(rest[1:])) {
			return r, bad
		}
		r.Ref.Loc.Pack.Snapshot = string(rest[1:])
	default:
		return r, bad
	}
	if r.Ref.IsZero() {
		return r, bad
	}
	return r, nil
}

// DecodeManifest reads a manifest's plain bytes.
func DecodeManifest(b []byte) (*Manifest, error) {
	m := &Manifest{}
	d := readFields("the point's manifest", b)
	m.read(d)
	if err := d.end(); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Manifest) read(d *fieldReader) {
	for _, f := range []struct {
		tag uint16
		to  *string
	}{
		{0x8001, &m.Snapshot}, {0x8002, &m.Resource}, {0x8006, &m.Parent}, {0x8007, &m.ChainRoot}, {0x8008, &m.Job},
		{0x0010, &m.Name}, {0x0011, &m.Description}, {0x0012, &m.ResourceType}, {0x0013, &m.ResourceName},
		{0x0015, &m.Zone}, {0x0016, &m.Group}, {0x0017, &m.Consistency}, {0x0018, &m.CBT}, {0x0019, &m.Reason},
	} {
		*f.to = d.str(f.tag)
	}
	m.SizeBytes, m.AddedBytes, m.VolumeType = d.num(0x8003), d.num(0x000a), d.num(0x0014)
	m.SnapshotTime, m.CreateTime = time.UnixMicro(d.num(0x8009)).UTC(), time.UnixMicro(d.num(0x0009)).UTC()
	m.Full = d.num(0x8005) == 1
	m.GroupSize = d.optNum(0x001a)
	root, err := decodeRoot(d.take(0x8004))
	m.Root = root
	if d.err == nil {
		d.err = err
	}
	if m.SizeBytes < 0 || m.SizeBytes > 1<<62 || tree.LevelFor(Chunks(m.SizeBytes)) != m.Root.Level || !tree.ValidSnapshot(m.Snapshot) {
		d.fail("contradicts itself")
	}
}

// Chunks is the number of chunks of a volume of that many bytes.
func Chunks(sizeBytes int64) int64 { return (sizeBytes + ChunkSize - 1) / ChunkSize }

// PointPack names a point's pack.
func PointPack(snapshot string, id PackID) Pack {
	return Pack{Kind: addr.Point, ID: id, Snapshot: snapshot}
}

// ReadManifest reads a point's manifest from the first whole copy. content,
// if not zero, must be the pack's content hash.
func (r *Repo) ReadManifest(ctx context.Context, p Pack, content ID) (*Manifest, error) {
	var m *Manifest
	err := r.eachCopy(p, func(blob string) error {
		b, err := readSmall(ctx, r.store, blob, pointBlobMax)
		if err != nil {
			return err
		}
		m, err = r.manifestIn(p, b, content)
		return err
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// ReadPoint reads a manifest of which nobody knows the content hash, and tells
// that hash.
func (r *Repo) ReadPoint(ctx context.Context, p Pack) (m *Manifest, content ID, err error) {
	err = r.eachCopy(p, func(blob string) error {
		b, err := readSmall(ctx, r.store, blob, pointBlobMax)
		if err != nil {
			return err
		}
		if len(b) < pack.FooterSize {
			return fmt.Errorf("%w: the pack is cut", pack.ErrDamaged)
		}
		f, err := pack.ParseFooter(p.ID, b[len(b)-pack.FooterSize:], int64(len(b)))
		if err != nil {
			return err
		}
		content = f.Content
		m, err = r.manifestIn(p, b, content)
		return err
	})
	if err != nil {
		return nil, ID{}, err
	}
	return m, content, nil
}

// manifestIn checks a point pack's bytes whole and decodes its manifest.
func (r *Repo) manifestIn(p Pack, blob []byte, content ID) (*Manifest, error) {
	if !content.IsZero() && len(blob) >= pack.FooterSize {
		f, err := pack.ParseFooter(p.ID, blob[len(blob)-pack.FooterSize:], int64(len(blob)))
		if err != nil {
			return nil, err
		}
		if f.Content != content {
			return nil, fmt.Errorf("%w: it is not the manifest that was committed", pack.ErrDamaged)
		}
	}
	x, err := r.NewReader()
	if err != nil {
		return nil, err
	}
	defer x.Close()
	var m *Manifest
	err = r.sealer.Check(p, blob, func(_ pack.Entry, rec pack.Record) error {
		if rec.Kind != pack.Manifest {
			return nil
		}
		if err := x.decode(rec); err != nil {
			return err
		}
		if x.mans.ID(x.plain) != rec.IDs[0] {
			return fmt.Errorf("%w: the manifest does not match its id", pack.ErrDamaged)
		}
		var err error
		m, err = DecodeManifest(x.plain)
		return err
	})
	if err == nil && (m == nil || m.Snapshot != p.Snapshot) {
		err = fmt.Errorf("%w: it holds no manifest of %s", pack.ErrDamaged, p.Snapshot)
	}
	return m, err
}
