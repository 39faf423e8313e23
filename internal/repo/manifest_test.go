package repo

import (
	"bytes"
	"testing"
	"time"

	"cairn/internal/errs"
	"cairn/internal/repo/addr"
)

func sampleManifest() *Manifest {
	return &Manifest{
		Snapshot: "ss-ABCD1234", Resource: "vol-ABCD1234", SizeBytes: 10 << 20, Full: true, ChainRoot: "ss-ABCD1234", Job: "job",
		SnapshotTime: time.UnixMicro(1234567).UTC(), CreateTime: time.UnixMicro(7654321).UTC(), AddedBytes: 99, Name: "näme",
		Description: "what\nfor", ResourceType: "volume", ResourceName: "disk", VolumeType: 3, Zone: "ac1", Group: "g",
		Consistency: "crash", CBT: "scan", Reason: "the first point",
		Root: Root{Level: 1, Ref: Ref{ID: ID{1}, Loc: Loc{Pack: Pack{Kind: addr.Point, ID: PackID{2}, Snapshot: "ss-ABCD1234"}, Off: 112, Len: 500}}},
	}
}

func TestManifestRoundTrip(t *testing.T) {
	m := sampleManifest()
	for _, root := range []Root{m.Root, {Level: 1}, {Level: 1, Ref: Ref{ID: ID{7}, Loc: Loc{Pack: Pack{Kind: addr.Node, ID: PackID{3}}, Off: 1, Len: 2}}}} {
		m.Root = root
		got, err := DecodeManifest(m.Encode())
		if err != nil || *got != *m {
			t.Fatalf("got %+v, %v", got, err)
		}
	}
}

func TestManifestUnknownFields(t *testing.T) {
	var w fieldWriter
	w.field(0x9000, []byte("x"))
	if _, err := DecodeManifest(append(sampleManifest().Encode(), w.b...)); !errs.Is(err, errs.Conflict) {
		t.Errorf("an unknown critical field: %v", err)
	}
	w = fieldWriter{}
	w.field(0x0001, []byte("x"))
	if _, err := DecodeManifest(append(w.b, sampleManifest().Encode()...)); err != nil {
		t.Errorf("an unknown other field: %v", err)
	}
}

func TestManifestCut(t *testing.T) {
	b := sampleManifest().Encode()
	for n := range b {
		if _, err := DecodeManifest(b[:n]); err == nil {
			t.Fatalf("cut to %d bytes, accepted", n)
		}
	}
}

func TestParseBlob(t *testing.T) {
	var id PackID
	id[0] = 0xab
	for _, p := range []Pack{{Kind: addr.Data, ID: id}, {Kind: addr.Node, ID: id}, PointPack("ss-ABCD1234", id)} {
		for _, name := range p.Copies() {
			if got, _, ok := ParseBlob(name); !ok || got != p {
				t.Errorf("%s: %+v, %v", name, got, ok)
			}
			if _, _, ok := ParseBlob(name + "x"); ok {
				t.Errorf("%sx was taken for a blob", name)
			}
		}
	}
	for _, name := range []string{"", "data/", "data/xx/" + id.String(), "point/a", "other/ab/" + id.String(), "node/ab/" + id.String()} {
		if _, _, ok := ParseBlob(name); ok {
			t.Errorf("%q was taken for a blob", name)
		}
	}
}

func FuzzManifest(f *testing.F) {
	f.Add(sampleManifest().Encode())
	f.Add([]byte{1, 0x80, 4, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeManifest(b)
		if err != nil {
			return
		}
		again, err := DecodeManifest(m.Encode())
		if err != nil || *again != *m {
			t.Fatalf("a decoded manifest does not survive: %v", err)
		}
		if !bytes.Equal(again.Encode(), m.Encode()) {
			t.Fatal("not canonical")
		}
	})
}
