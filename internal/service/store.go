package service

import (
	"context"
	"encoding/json"
	"time"

	"cairn/internal/chain"
	"cairn/internal/job"
)

// VolumeStatus is a volume's state (API.md §6).
type VolumeStatus string

// The five states of a volume.
const (
	VolumePending   VolumeStatus = "pending"
	VolumeAvailable VolumeStatus = "available"
	VolumeInUse     VolumeStatus = "in-use"
	VolumeDeleted   VolumeStatus = "deleted"
	VolumeCeased    VolumeStatus = "ceased"
)

// Volume is one row. A machine is one as well: the row of its system disk, whose
// id is the machine's (docs/adr/0012-machines.md). It is in no list of volumes.
type Volume struct {
	ID          string
	Zone        string
	Name        string
	Description string
	Type        int    // volume_type; create_volume copies it
	Driver      string // "managed", "registered" or "nbd": which volume.Driver serves it
	Path        string // where it is, unless it is managed: an absolute path or an NBD URI
	Identity    string // likewise; unique among volumes that are not ceased
	SizeBytes   int64
	Status      VolumeStatus
	Transition  string // "", creating, deleting, resizing, applying, importing …
	CreateTime  time.Time
	StatusTime  time.Time
	// MixedJob is the id of an apply job that has begun to write and has not
	// finished: the content is a mixture and only that job may touch it.
	MixedJob string
	// OnDemand says that nobody fetches in the background what a clone or a
	// rolled back volume still needs of the repository. The journal does not keep
	// it: after a recover the volume is filled.
	OnDemand bool

	// InstanceID is the machine that has the volume, "" if none has; of a system
	// disk it is the volume's own id. Device is where, as vdb.
	InstanceID string
	Device     string
	// Of a system disk: what its machine is made of, and the image it was run
	// from.
	CPUs   int
	Memory int64 // bytes
	Image  string
}

// Snapshot is one row. chain.Point is what the rules read.
//
// An image is one as well: a full point that is its own resource and its own
// chain, whose id begins with img-. It is in no list of snapshots.
type Snapshot struct {
	chain.Point
	Zone         string
	Name         string
	Description  string
	Transition   string // creating, deleting, recovering, … or ""
	CreateTime   time.Time
	StatusTime   time.Time
	IsTaken      bool
	HeadChain    bool // fulls: the head of the resource is in this chain
	ResourceType string
	ResourceName string // as it was when the point was taken
	VolumeType   int
	GroupID      string // one per create call
	JobID        string // the job that made it
	Consistency  string // "crash" or "filesystem"
	CBT          string // how changes were found: "scan", …
	Reason       string // why it is full or incremental, for people
	// ManifestPack is the hex id of the point's manifest pack; "" until committed.
	ManifestPack string
	ManifestHash string // hex BLAKE3 of the manifest blob's content; "" until committed

	// Of the whole chain, kept on its full; zero on increments.
	TotalBytes  int64
	TotalCount  int
	LatestTime  time.Time // snapshot_time of the chain's newest live point
	UniqueBytes int64     // freed if this point alone went; see UniqueKnown
	UniqueKnown bool      // a collection has marked since the point was taken

	// BinClock is the server's uptime, in seconds, when it was deleted.
	BinClock int64
}

// SnapshotFilter selects a page of snapshots. Empty fields don't filter.
// Order: newest CreateTime first, then ID ascending.
type SnapshotFilter struct {
	Zone       string
	IDs        []string // unknown ones are simply absent
	ResourceID string
	Full       *bool
	Statuses   []chain.Status // empty: all but deleted and ceased, unless IDs are given: then all
	Search     string         // substring of id or name, case-insensitive
	RootID     string         // the incrementals under that full (the full itself is not listed)
	Images     bool           // images instead of snapshots
	Offset     int
	Limit      int
}

// VolumeFilter selects a page of volumes, newest first, then ID.
type VolumeFilter struct {
	Zone     string
	IDs      []string
	Type     *int
	Statuses []VolumeStatus // empty: all but deleted and ceased, unless IDs are given
	Search   string
	// Instances: machines, by the rows of their system disks, instead of volumes.
	Instances bool
	Offset    int
	Limit     int
}

// JobFilter selects a page of jobs, newest first, then ID.
type JobFilter struct {
	Zone     string // "" = all
	Statuses []job.Status
	Resource string // jobs whose ResourceIDs hold it
	Offset   int
	Limit    int
}

// SessionState is a repository session's place in the commit protocol
// (DESIGN §3): the two ways out of ACTIVE are compare-and-sets.
type SessionState string

// Session states.
const (
	SessionActive    SessionState = "ACTIVE"
	SessionCommitted SessionState = "COMMITTED"
	SessionAborted   SessionState = "ABORTED"
)

// Session is one row; its ID is the id of the job that owns it.
type Session struct {
	ID    string // job id
	Term  int64
	State SessionState
}

// PackState is a pack's place in the collection protocol (DESIGN §4).
type PackState string

// Pack states. DELETING is final: its blob may be gone already.
const (
	PackLive      PackState = "LIVE"
	PackCondemned PackState = "CONDEMNED"
	PackDeleting  PackState = "DELETING"
)

// Pack is one row: a blob of the repository that a session registered before
// it put it. Rows of a session count only once the session is COMMITTED.
type Pack struct {
	ID      string // hex
	Kind    string // "data", "node", "point"
	Name    string // blob name without copy suffix
	Session string
	Term    int64
	State   PackState
	Born    int64 // epoch
	Stamped int64 // epoch
	Bytes   int64
	// Condemned is the epoch of the collection that condemned it; 0: LIVE.
	Condemned int64
	Verified  time.Time // when a scrub last found every bit right; zero: never
	// Damaged: a scrub found something of it missing or wrong in every copy.
	// No new point refers to it.
	Damaged bool
}

// Store is the metadata database. metadb implements it; metadbtest.Run is the
// suite every implementation passes.
//
// Update runs fn in one serializable transaction: fn's error rolls everything
// back and is returned as it is. fn may be run a second time, from the start,
// after everything of the first was rolled back. View gives fn a consistent snapshot. Neither
// may be nested, and fn does no I/O but through tx. All times are stored to
// the microsecond in UTC. "Not there" is errs.NotFound with a sentence that
// names the id.
type Store interface {
	View(ctx context.Context, fn func(tx Tx) error) error
	Update(ctx context.Context, fn func(tx Tx) error) error
	job.Store
	Close() error
}

// Tx is one transaction. Methods take their context from Update or View.
type Tx interface {
	InsertVolume(v Volume) error
	Volume(zone, id string) (Volume, error) // any status but ceased; zone "" = any
	UpdateVolume(v Volume) error            // by ID; every column
	Volumes(f VolumeFilter) (rows []Volume, total int, err error)
	// VolumesOf is every volume of a machine, its system disk first, then by
	// Device.
	VolumesOf(instanceID string) ([]Volume, error)
	// VolumeByIdentity finds the registered volume, not ceased, with that
	// identity or that path.
	VolumeByIdentity(identity, path string) (Volume, bool, error)

	InsertSnapshot(s Snapshot) error
	Snapshot(zone, id string) (Snapshot, error) // any status; zone "" = any
	UpdateSnapshot(s Snapshot) error            // by ID; every column
	Snapshots(f SnapshotFilter) (rows []Snapshot, total int, err error)
	// Chain is every point of one chain that is not ceased, the full first,
	// then by SnapshotTime and ID.
	Chain(rootID string) ([]Snapshot, error)
	// Head is the resource's head, ok=false if it has none. At most one
	// exists; the database enforces it.
	Head(resourceID string) (s Snapshot, ok bool, err error)
	// LivePoints streams id, root and manifest of every point that is
	// neither pending nor ceased, for accounting and scrub.
	LivePoints(fn func(s Snapshot) error) error
	// ExpiredPoints lists points in the recycle bin with a BinClock of at most
	// the given one that nobody pins, at most limit of them, longest deleted
	// first.
	ExpiredPoints(binClock int64, limit int) ([]Snapshot, error)
	// SetUnique writes what a mark found out about a point, if that still exists.
	SetUnique(id string, uniqueBytes int64) error

	InsertJob(j job.Job) error
	Job(id string) (job.Job, error)
	Jobs(f JobFilter) (rows []job.Job, total int, err error)
	// FinishJob ends a job inside this transaction. term fences: if the row
	// has another term or is ended already, it is job.ErrFenced. term < 0
	// ends a job that is not claimed.
	FinishJob(id string, term int64, out job.Outcome) error
	// SaveJobState is job.Store's SaveState inside this transaction, of a job
	// that is past its point of no return.
	SaveJobState(id string, term int64, state json.RawMessage) error

	// Lock gives holder (a job id) the resources (volume and snapshot ids),
	// all or none; taken ones answer errs.Busy naming the first, its message
	// ending in "please try later". Taking what one has already is fine.
	Lock(holder string, resources ...string) error
	Unlock(holder string) error
	LockedBy(resource string) (holder string, ok bool, err error)
	// Pin keeps points from being deleted while holder reads or builds on
	// them. Any number of holders may pin one point.
	Pin(holder string, snapshots ...string) error
	Unpin(holder string) error
	// Pinned returns the first of the snapshots that is pinned, and by whom.
	Pinned(snapshots ...string) (snapshot, holder string, ok bool, err error)
	// Holders lists every holder of a lock or a pin.
	Holders() ([]string, error)

	// PutSession inserts or takes over (higher term) a session. It fails with
	// job.ErrFenced if the stored term is higher or the state is not ACTIVE.
	PutSession(s Session) error
	Session(id string) (s Session, ok bool, err error)
	// CASSession moves a session from ACTIVE to the given state if its term
	// matches; swapped=false if it was not so.
	CASSession(id string, term int64, to SessionState) (swapped bool, err error)

	// InsertPack registers a pack before its Put; job.ErrFenced if the
	// session is not ACTIVE under that term.
	InsertPack(p Pack) error
	// PacksOf lists a session's packs.
	PacksOf(session string) ([]Pack, error)
	// Packs streams every pack row of committed sessions.
	Packs(fn func(p Pack) error) error
	// AllPacks streams every pack row, with the state of its session.
	AllPacks(fn func(p Pack, session SessionState) error) error
	// PacksToVerify lists packs of committed sessions that are not DELETING, at
	// most limit of them, longest not verified first.
	PacksToVerify(limit int) ([]Pack, error)
	// LeavingPacks lists the packs that are CONDEMNED or DELETING.
	LeavingPacks() ([]Pack, error)
	Pack(id string) (p Pack, ok bool, err error)
	UpdatePack(p Pack) error // by ID; every column
	// PutLeavingPack inserts a row, in any state but LIVE, for a stored pack
	// that has none.
	PutLeavingPack(p Pack) error
	DeletePacks(ids ...string) error
	// ActiveSessions lists the sessions that may still commit.
	ActiveSessions() ([]Session, error)

	Changes

	// Setting reads a value; "" if it was never set.
	Setting(key string) (string, error)
	SetSetting(key, value string) error
}
