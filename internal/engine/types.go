// Package engine moves bytes: from a frozen volume into the repository, and
// from the repository back to a volume or a stream.
//
// Invariants:
//   - nothing is reported done before it is durable: progress counts bytes
//     whose packs were acknowledged, a restore is done after Target.Sync;
//   - every chunk that leaves the repository was checked against its id;
//   - memory is bounded by the configuration, never by the volume's size.
//
// An Engine serves any number of goroutines.
package engine

import (
	"time"

	"cairn/internal/extent"
	"cairn/internal/volume"
)

// PointRef names a durable point in the repository: the manifest blob is
// manifests/<Snapshot>.<Pack>.
type PointRef struct {
	Snapshot string // ss-…
	Pack     string // hex id of the manifest pack
	Hash     string // hex BLAKE3-256 of the manifest blob; "" = do not compare
}

// PointMeta goes into the manifest, so that the repository describes itself.
type PointMeta struct {
	Snapshot     string
	Resource     string // vol-… or ins-…
	ResourceType string
	ResourceName string
	VolumeType   int
	Zone         string
	Group        string
	GroupSize    int // points of the group; 0: not known
	Job          string
	Name         string
	Description  string
	Full         bool
	Parent       string // snapshot id; "" on a full
	Root         string // snapshot id of the chain's full
	CreateTime   time.Time
	SnapshotTime time.Time
	Consistency  string
	CBT          string
	Reason       string
	SizeBytes    int64 // of the volume at that instant
}

// CaptureSpec is one volume of one create call.
type CaptureSpec struct {
	Meta   PointMeta
	Source volume.Source
	// Parent is the point whose tree is inherited where nothing changed. Only
	// what changed since its content is read, if the source knows that; else
	// all data. nil: write every node afresh (a full) and read all data.
	Parent *PointRef
}

// How the changes of a point were found.
const (
	CBTScan    = "scan"    // everything was read and compared by hash
	CBTTracked = "tracked" // the driver knew what may have changed
)

// Captured is what a capture left in the repository. The manifest is durable;
// the point becomes real when the session commits.
type Captured struct {
	Ref         PointRef
	AddedBytes  int64 // bytes of the repository that this point added: chunks, nodes and manifest
	SourceBytes int64 // volume size
	ReadBytes   int64 // bytes read from the source; those of the audit come on top
	NewChunks   int64
	CBT         string            // as in the manifest: the caller's word, or CBTTracked
	Reason      string            // as in the manifest: the caller's word, and what an audit found wrong
	Checkpoint  volume.Checkpoint // names the content, as its Tree does
	Audit       Audit
}

// Audit is what came of comparing chunks that the source called unchanged with
// the parent's.
type Audit struct {
	Bytes int64          // compared
	Wrong []extent.Range // in which they differ, in order. Any: everything was read
}

// Progress is called with bytes done out of total. It is cheap and may be
// called from any goroutine, but never concurrently with itself.
type Progress func(doneBytes, totalBytes int64)

// Restored is what a restore did to its target.
type Restored struct {
	WrittenBytes int64 // data bytes that differed and were written
	ZeroedBytes  int64 // bytes that differed and were zeroed
	EqualBytes   int64 // bytes found equal and left alone
}

// Format is an export's file format.
type Format string

// Export formats.
const (
	FormatRaw   Format = "raw"
	FormatQcow2 Format = "qcow2"
)

// Damage is one finding of a scrub.
type Damage struct {
	Blob     string // blob name; "" when the damage is not in one blob
	What     string // one sentence
	Snapshot string // affected point, if known
	Offset   int64  // affected byte range of its volume; Length 0: none or all
	Length   int64
}

// ScrubReport is the outcome of a scrub. Damage empty = clean.
type ScrubReport struct {
	Points       int
	Blobs        int
	Chunks       int64
	Nodes        int64
	BytesRead    int64
	Damage       []Damage
	DamageCut    int      // findings beyond the 1000 that are listed
	DamagedPoint []string // ids of points that cannot be restored whole
	BadPacks     []string // packs without a copy that is whole
	LostCopies   []string // blobs that are damaged or missing while a copy of them is whole
}
