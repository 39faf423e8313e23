package qcow2

const (
	magic     = 'Q'<<24 | 'F'<<16 | 'I'<<8 | 0xfb
	sector    = 512          // QEMU cuts a size that is no multiple
	maxL1     = 32 << 20 / 8 // QEMU's QCOW_MAX_L1_SIZE, in entries
	headerLen = 104          // version 3 without optional fields
)

// Where the fields of the header lie.
const (
	atMagic            = 0
	atVersion          = 4
	atBackingOffset    = 8
	atBackingLen       = 16
	atClusterBits      = 20
	atSize             = 24
	atCrypt            = 32
	atL1Entries        = 36
	atL1Offset         = 40
	atRefTable         = 48
	atRefTableClusters = 56
	atSnapshots        = 60
	atIncompatible     = 72 // version 2 ends here
	atRefcountOrder    = 96
	atHeaderLen        = 100
	atCompression      = 104 // only if the header is longer than headerLen
)

// Bits of the incompatible features.
const (
	featureDirty       = 0 // refcounts may be wrong
	featureCorrupt     = 1
	featureDataFile    = 2 // the data lies in another file
	featureCompression = 3 // compressed by something else than zlib
	featureExtendedL2  = 4 // L2 entries of 16 bytes, with subclusters
)

// Header extensions.
const (
	extFeatureNames = 0x6803f857
	extDataFile     = 0x44415441
)

// Values of the compression type.
const (
	compressZlib = 0
	compressZstd = 1
)

// Parts of L1 and L2 entries.
const (
	entryOffset = uint64(1)<<56 - 1<<9 // where the table or cluster lies
	copied      = uint64(1) << 63      // refcount is exactly 1
	compressed  = uint64(1) << 62      // L2: the rest describes a compressed cluster
	readsZero   = uint64(1)            // L2, version 3 without subclusters
)

// subclusters is how many parts a cluster has where L2 entries are extended.
const subclusters = 32
