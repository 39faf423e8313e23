// Package volume is the contract between the service and the things that hold
// block volumes. Drivers live below it (file, live, nbd; later libvirt);
// volumetest.Run is the suite that every driver passes.
//
// Invariants every driver keeps:
//   - a Source shows one instant: bytes that were changed after Freeze are
//     never mixed in without Check (or ReadAt) failing;
//   - a Target is exclusive: nobody else writes the volume while it is open,
//     as far as the system can enforce it (each driver documents how far);
//   - nothing under a registered volume is created, resized or removed.
package volume

import (
	"context"
	"errors"
	"time"

	"cairn/internal/extent"
)

// ErrNoBase says that changes since the wanted checkpoint are not known:
// everything must be read.
var ErrNoBase = errors.New("no change tracking since the wanted checkpoint")

// ErrNoInstant says that no instant survived under the hold's name.
var ErrNoInstant = errors.New("no instant is held under this name")

// ErrChanged says that the volume changed while it was being read, so what
// was read is not one moment.
var ErrChanged = errors.New("the volume changed while it was read")

// Spec names one volume to its driver.
type Spec struct {
	ID        string // vol-…
	Path      string // registered volumes: canonical absolute path; else ""
	Identity  string // registered volumes: Probe's answer at registration; else ""
	SizeBytes int64  // as the service knows it
}

// Probe is what a driver found at a path that somebody wants to register.
type Probe struct {
	Path      string // canonical: absolute, symlinks resolved
	Identity  string // equal for two names of one file or device
	SizeBytes int64
	Device    bool // block device
}

// Checkpoint names the content that changes are tracked from: that of a point,
// as Tree.Checkpoint and the engine tell it.
type Checkpoint string

// Capabilities are a driver's optional powers, as data.
type Capabilities struct {
	CreateVolumes bool // Create, Grow and Remove work
	Register      bool // Probe works
	Tracking      bool // Changed may answer without ErrNoBase
}

// Driver holds volumes of one kind. Methods may be called concurrently; the
// service never runs two changes of one volume at once.
type Driver interface {
	Capabilities() Capabilities

	// Probe examines a path for registration. errs.Invalid: not something
	// that can be a volume (and why); errs.NotFound: nothing there.
	Probe(ctx context.Context, path string) (Probe, error)

	// Create makes an all-zero volume of s.SizeBytes, durable on return.
	// If one is there already, a leftover of a crash, it is made empty.
	Create(ctx context.Context, s Spec) error

	// Grow makes the volume newSize bytes; the new tail is zeros. Running it
	// twice is harmless.
	Grow(ctx context.Context, s Spec, newSize int64) error

	// Remove destroys the volume's data. An absent one is not an error.
	Remove(ctx context.Context, s Spec) error

	// Size asks the real thing for its present size in bytes.
	Size(ctx context.Context, s Spec) (int64, error)

	// Freeze holds one instant of all specs, all or none, under the name
	// hold (a job id). errs.Busy: somebody has a volume open for writing.
	//
	// within, unless nil, is called once, while all of specs are held still:
	// their instant is a moment within it, and the Instant's Time one before
	// it. So freezes of several drivers nest, and the moment of the innermost
	// is that of all. It gets a ctx that ends with Freeze's. If it fails,
	// Freeze fails with its error and holds nothing; a Freeze that fails
	// before has not called it.
	Freeze(ctx context.Context, hold string, specs []Spec, within func(ctx context.Context) error) (Instant, error)

	// Reopen gives the instant that an earlier process held durably under
	// hold, or ErrNoInstant.
	Reopen(ctx context.Context, hold string, specs []Spec) (Instant, error)

	// Drop lets go of whatever is held under hold, in this process or left
	// by an earlier one. Nothing held is not an error.
	Drop(ctx context.Context, hold string) error

	// OpenTarget opens a volume for being overwritten, exclusively.
	OpenTarget(ctx context.Context, s Spec) (Target, error)
}

// Foreign is a Driver of volumes that others made and use, as the disks of
// machines that run under libvirt.
type Foreign interface {
	Driver

	// Reserve waits until no other instant is in the way of a Freeze of specs
	// under hold: not all volumes, as the disks of one machine, can be in two
	// at once. Others are kept out until that one's Instant is closed, or
	// until Drop of hold. Do it before anything is held still.
	Reserve(ctx context.Context, hold string, specs []Spec) error

	// CheckTarget says, while a volume is still in use, why OpenTarget would
	// refuse it when it no longer is. errs.Conflict: it would harm others, or
	// not be the volume that is used next.
	CheckTarget(ctx context.Context, s Spec) error

	// Forget removes what the driver made beside a volume, or knows of it.
	// The volume stays. Running it twice is harmless.
	Forget(ctx context.Context, s Spec) error

	// Tidy ends what is left of holds that nobody has any more, of earlier
	// processes above all, and of those that could not be ended. It is made
	// for being called now and then.
	Tidy(ctx context.Context) error
}

// Instant is one moment of one or more volumes.
type Instant interface {
	// Time is when the moment was.
	Time() time.Time
	// Durable says that the moment survives a crash of this process and of
	// the machine, so that Reopen will find it.
	Durable() bool
	// Source is the i-th volume of Freeze's specs at that moment. It stays
	// the Instant's: do not close it.
	Source(i int) Source
	// Check fails with ErrChanged (wrapped in errs.Conflict with a sentence
	// that names the volume) if any volume may have changed since Freeze, so
	// that what was read could be a mixture. A durable Instant never changes.
	// Call it after the last read.
	Check(ctx context.Context) error
	// Settle runs commit, once, which makes the points taken of this instant
	// real. If that fails Settle fails with its error, and the instant is held
	// on. Else changes of the i-th source are tracked from checkpoints[i] on,
	// which is what it showed at the instant, and the volumes are everybody's:
	// who comes for one of them meanwhile waits, so that nobody is refused once
	// what commit did can be seen. When Settle fails after commit the next
	// capture may have to read everything; nothing else is lost.
	//
	// An instant that is closed without it leaves tracking as it was, with what
	// changed since counted in.
	Settle(ctx context.Context, checkpoints []Checkpoint, commit func() error) error
	// Close frees locks and descriptors. A durable instant stays for Reopen
	// until Drop.
	Close() error
}

// Source is one volume, frozen at one instant. Any number of goroutines may read.
type Source interface {
	Size() int64 // bytes
	// ReadAt fills buf whole from byte off; a short read is an error.
	ReadAt(ctx context.Context, buf []byte, off int64) error
	// Release says that nobody will read a range any more: the driver need not
	// keep it as it was, Data may leave it out, and reading it may fail. What it
	// covers of a chunk in part only stays. Nobody may be reading it. A durable
	// Instant keeps everything, as whoever reopens it begins anew.
	Release(ctx context.Context, off, length int64) error
	// Data returns the first range at or after off that may hold anything
	// but zeros, or io.EOF when only zeros follow.
	Data(ctx context.Context, off int64) (extent.Range, error)
	// Changed returns the first range at or after off that may differ from
	// base, or io.EOF when nothing follows. ErrNoBase: changes are unknown.
	Changed(ctx context.Context, base Checkpoint, off int64) (extent.Range, error)
	// Audit lists ranges that Changed(base) leaves out and that the caller
	// shall compare with the base all the same: a few MiB, in no order, nil for
	// none. The driver rotates them, but only from one Settle to the next: who
	// has to capture again then meets the same untruth again. It is called only
	// after Changed knew base.
	Audit(ctx context.Context, base Checkpoint) ([]extent.Range, error)
}

// Export is how clients reach a volume that is served.
type Export struct {
	URIs    []string // NBD, that of the unix socket first; none: not served
	Clients int      // connected now
	// Missing bytes are still to be fetched from the repository, or to be made
	// durable; 0: the volume is independent of it.
	Missing int64
}

// Roller is a volume held for a rollback, or to be handed over when it is new:
// nobody else uses it and no client is connected until End or Close.
type Roller interface {
	// Roll makes the volume's content that of tree, in one durable step: a
	// crash leaves the old content or the new one. What may differ from it comes
	// from the repository from now on, the rest stays. from is the tree of the
	// volume's head, nil if it has none: where changes since are known, only they
	// and what differs between the trees are swapped. Bytes beyond the tree's end
	// become zeros. Running it twice is harmless.
	Roll(ctx context.Context, tree, from Tree) (Rolled, error)
	// End runs commit while everybody who wants the volume waits, clients too.
	// If it succeeds the volume is theirs, and served: nobody is refused once
	// what commit did can be seen. Of several volumes those with lesser ids are
	// ended around the others.
	End(commit func() error) error
	// Close may be called more than once, and after End.
	Close() error
}

// Rolled is what a rollback by map did.
type Rolled struct {
	Relabelled int64 // bytes that were known to be equal and stayed
	Swapped    int64 // bytes that come from the repository now
}

// Tree is the content of a point, read from the repository on demand. Any
// number of goroutines may read. The point must not be deleted meanwhile.
type Tree interface {
	// Ref names the point so that it can be opened again after a restart.
	// Opaque to drivers.
	Ref() string
	// Checkpoint names the content: two trees (or a tree and a driver's
	// tracking) with an equal one hold equal bytes and have the same size.
	Checkpoint() Checkpoint
	Size() int64 // bytes
	// ReadAt fills buf whole; aligned multiples of 64 KiB are fastest.
	// errs.Corrupt: damaged in every copy; errs.Unavailable: the repository
	// does not answer, worth another try.
	ReadAt(ctx context.Context, buf []byte, off int64) error
	// Data returns the first range at or after off that may hold anything
	// but zeros, or io.EOF when only zeros follow.
	Data(ctx context.Context, off int64) (extent.Range, error)
	// Differs returns the first range at or after off in which the content may
	// differ from another tree's of the same repository, or io.EOF. Chunks are
	// compared whole, and only subtrees whose hashes differ are visited. What
	// lies behind the end of the smaller one is not listed: callers handle
	// sizes.
	Differs(ctx context.Context, from Tree, off int64) (extent.Range, error)
	// Close gives memory back. Nobody reads any more.
	Close() error
}

// Target is a volume opened for being overwritten. WriteAt, ReadAt and Zero
// may be called concurrently on ranges that do not overlap.
type Target interface {
	Size() int64 // bytes
	ReadAt(ctx context.Context, buf []byte, off int64) error
	// Data is like Source.Data: what is outside reads as zeros.
	Data(ctx context.Context, off int64) (extent.Range, error)
	WriteAt(ctx context.Context, buf []byte, off int64) error
	// Zero makes the range read as zeros, giving space back where it can.
	Zero(ctx context.Context, off, length int64) error
	// Sync makes all durable whose WriteAt or Zero returned before it was
	// called; others may run beside it. After it failed once the content is
	// unknown and Sync must not be tried again on this Target.
	Sync(ctx context.Context) error
	// Close releases the volume. It does not sync.
	Close() error
}
