package service

// ChangeKind says what kind of row changed.
type ChangeKind uint8

// The kinds of rows that the journal keeps.
const (
	SnapshotChange ChangeKind = 1
	VolumeChange   ChangeKind = 2
)

// Change names a row whose present state the repository's journal lacks.
type Change struct {
	Number int64
	Kind   ChangeKind
	ID     string
}

// Changes is the part of a transaction that the journal needs (ADR 0006).
//
// Each insert and update of a snapshot or a volume leaves a change in the same
// transaction, and takes the row's earlier one away, so that there is one a
// row and its number tells of the latest. None is left by a pending row, nor
// if nothing changed but transition, head_chain, totals and unique bytes.
type Changes interface {
	// Changes lists those above a number, lowest first.
	Changes(above int64, limit int) ([]Change, error)
	// LastChange is the highest number that was ever given, 0 before the
	// first. Numbers grow and never come again.
	LastChange() (int64, error)
	// ForgetChanges takes away all up to a number.
	ForgetChanges(upTo int64) error

	// SnapshotsAfter lists every snapshot, whatever its status, in the order
	// of ids, from the first one above id on.
	SnapshotsAfter(id string, limit int) ([]Snapshot, error)
	// VolumesAfter is the same for volumes, ceased ones too.
	VolumesAfter(id string, limit int) ([]Volume, error)
}
