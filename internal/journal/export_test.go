package journal

// What the tests of the package's outside need of its inside.
var (
	SnapshotOf = snapshotOf
	VolumeOf   = volumeOf
)
