package nbd

import (
	"context"
	"strings"
	"unicode/utf8"

	"cairn/internal/errs"
)

// Flags qualify a write, a trim or a zeroing. Their values are the protocol's.
type Flags uint16

const (
	// FUA says that what the request wrote must be durable before it is answered.
	FUA Flags = cmdFlagFUA
	// NoHole says that zeroes must stay allocated, so that later writes there cannot
	// fail for lack of space.
	NoHole Flags = cmdFlagNoHole
	// FastZero means zero only if that is quicker than writing, else ENOTSUP at
	// once and nothing changed.
	FastZero Flags = cmdFlagFastZero
)

// BaseAllocation is the meta context that every server knows: its extents
// have the flags Hole and Zero.
const BaseAllocation = "base:allocation"

// Flags of extents of BaseAllocation.
const (
	Hole uint32 = 1 << 0 // not allocated
	Zero uint32 = 1 << 1 // reads as zeroes
)

// Extent is a range with one status in one meta context.
type Extent struct {
	Off, Len int64 // bytes
	Flags    uint32
}

// End is the first byte after the extent.
func (e Extent) End() int64 { return e.Off + e.Len }

// BlockSize limits requests, in bytes.
type BlockSize struct {
	Min       int64 // offsets and lengths are multiples of it; a power of two
	Preferred int64 // a good size of a request
	Max       int64 // the most that a read or a write may carry
}

// Backend is what an export's requests are done on.
//
// Every method may be called by many goroutines at once; the server orders
// nothing, as the protocol lets a client expect order only between a request
// that was answered and a later one. Ranges lie within the size that the
// connection was told, and are never empty, and multiples of the export's
// BlockSize.Min.
//
// Buffers belong to the server: a method keeps none after it returned, WriteAt
// changes none, ReadAt fills all of it or fails (what it leaves would be old
// bytes of another request).
//
// The context ends when the connection breaks or the export is removed; then
// the client learns nothing of this request, so a write may be left half done.
// A client that says goodbye waits for what it asked.
//
// An error is told to the client as an Errno by this order: an Errno in its
// chain; a context's error (ESHUTDOWN); a syscall.Errno where the protocol has
// the like of it; errs.Full and Quota (ENOSPC), Denied (EPERM), Invalid
// (EINVAL); else EIO.
type Backend interface {
	// ReadAt fills p with the bytes from off.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// WriteAt writes p at off. The flag may be FUA.
	WriteAt(ctx context.Context, p []byte, off int64, flags Flags) error
	// Flush makes every write that returned before the call durable, those of
	// other connections too.
	Flush(ctx context.Context) error
	// Trim says that nobody needs the bytes; they may read as anything then.
	// The flag may be FUA. Only called if the export has CanTrim.
	Trim(ctx context.Context, off, length int64, flags Flags) error
	// Zero makes the bytes read as zeroes, with FUA, NoHole and FastZero. Only
	// called if the export has CanZero, and with FastZero only if CanFastZero.
	Zero(ctx context.Context, off, length int64, flags Flags) error
	// Cache says that the bytes will be read soon. Only called if the export
	// has CanCache.
	Cache(ctx context.Context, off, length int64) error
	// Status appends to into what is known of [off, off+length) in one of the
	// export's contexts: adjoining extents from off on, at least one, at most
	// limit; they need not reach the end and may pass it. It is also asked for
	// BaseAllocation before large reads, to send holes instead of zeroes.
	Status(ctx context.Context, into []Extent, name string, off, length int64, limit int) ([]Extent, error)
}

// ExportConfig describes an export. What the Backend can do is said here.
type ExportConfig struct {
	Name        string // what clients ask for; exact, no default export
	Description string // for people; may be empty
	Size        int64  // bytes; SetSize changes it
	ReadOnly    bool   // writes are answered EPERM and reach no Backend
	// MultiConn promises that a flush on one connection covers the writes
	// answered on all. Clients use several connections only then.
	MultiConn                               bool
	CanTrim, CanZero, CanFastZero, CanCache bool
	Contexts                                []string  // that Backend.Status answers, at most 16
	BlockSize                               BlockSize // a field that is 0 becomes 1, 4096, 32 MiB
	// MaxConnections limits how many clients may be attached at once; 1 makes
	// attaching exclusive. 0: only the server's limit counts.
	MaxConnections int
}

const maxContexts = 16

// check fills in what was left out and refuses what no client could use.
func (c *ExportConfig) check() error {
	bs := &c.BlockSize
	if bs.Min == 0 {
		bs.Min = 1
	}
	if bs.Preferred == 0 {
		bs.Preferred = max(4096, bs.Min)
	}
	if bs.Max == 0 {
		bs.Max = defaultMaxBlock
	}
	switch {
	case len(c.Name) > maxStringLen || len(c.Description) > maxStringLen:
		return errs.New(errs.Invalid, "the name or description of an NBD export is longer than %d bytes", maxStringLen)
	case !cleanString(c.Name) || !cleanString(c.Description):
		return errs.New(errs.Invalid, "the NBD export %q: name and description must be UTF-8 without NUL", c.Name)
	case !powerOfTwo(bs.Min) || bs.Min > 64<<10 || !powerOfTwo(bs.Preferred) || bs.Preferred < max(bs.Min, 512):
		return errs.New(errs.Invalid, "the NBD export %q: minimum and preferred block size must be powers of two, up to 64 KiB and from 512 bytes", c.Name)
	case bs.Max < bs.Preferred || bs.Max > defaultMaxBlock || bs.Max%bs.Min != 0:
		return errs.New(errs.Invalid, "the NBD export %q: the maximum block size must be a multiple of the minimum, up to 32 MiB", c.Name)
	case len(c.Contexts) > maxContexts:
		return errs.New(errs.Invalid, "the NBD export %q has more than %d meta contexts", c.Name, maxContexts)
	}
	for _, name := range c.Contexts {
		if !cleanString(name) || len(name) > maxStringLen || strings.Index(name, ":") < 1 {
			return errs.New(errs.Invalid, "the NBD export %q: %q is no name of a meta context (namespace:name)", c.Name, name)
		}
	}
	return c.checkSize(c.Size)
}

func (c *ExportConfig) checkSize(size int64) error {
	if size < 0 || size%c.BlockSize.Min != 0 {
		return errs.New(errs.Invalid, "the NBD export %q: its size of %d bytes is no multiple of its minimum block size %d", c.Name, size, c.BlockSize.Min)
	}
	return nil
}

func powerOfTwo(n int64) bool { return n > 0 && n&(n-1) == 0 }

func cleanString(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

// transmissionFlags is what a client is told that it may do.
func (c *ExportConfig) transmissionFlags() uint16 {
	flags := uint16(flagHasFlags | flagFlush)
	for _, f := range []struct {
		on  bool
		bit uint16
	}{
		{c.ReadOnly, flagReadOnly},
		{!c.ReadOnly, flagFUA},
		{!c.ReadOnly && c.CanTrim, flagTrim},
		{!c.ReadOnly && c.CanZero, flagWriteZeroes},
		{!c.ReadOnly && c.CanZero && c.CanFastZero, flagFastZero},
		{c.MultiConn, flagMultiConn},
		{c.CanCache, flagCache},
	} {
		if f.on {
			flags |= f.bit
		}
	}
	return flags
}
