package live

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"cairn/internal/durable"
	"cairn/internal/errs"
	"cairn/internal/volume"
)

// head is the first record of a state file.
type head struct {
	Version    int               `json:"version"`
	Size       int64             `json:"size"`           // bytes of the volume
	Generation uint64            `json:"generation"`     // of the export's name
	Base       string            `json:"base,omitempty"` // Tree.Ref of the base tree
	Since      volume.Checkpoint `json:"since,omitempty"`
	Audit      int64             `json:"audit,omitempty"` // where in the volume the next audit begins
	// Clean: the dirty set is exact, because the server stopped in order. Else
	// whatever lies in a region of the intent set counts as changed as well.
	Clean bool `json:"clean,omitempty"`
	// Boot is the boot of the machine in which the file was written: local
	// records that no commit covers are true in it, and only in it.
	Boot string `json:"boot"`
	// Whole is how many bytes were written at once; they are there or the file
	// is damaged. What follows was appended.
	Whole int64 `json:"whole"`
}

const (
	stateVersion = 1
	headBytes    = 1024 // payload of the head: serial u64, JSON, spaces
	logStep      = 64 << 10
)

// content is what a state file says.
type content struct {
	head
	tree   *set // clusters whose bytes are the base tree's, but for local pages
	pages  *masks
	dirty  *set // clusters changed since head.Since
	intent *set // regions in which clusters may have changed without being in dirty
}

func newContent(h head) *content {
	n := clusters(h.Size)
	return &content{head: h, tree: newSet(n), pages: newMasks(n), dirty: newSet(n), intent: newSet(regions(h.Size))}
}

// stateFile is an open state file, to which records are appended. Its callers
// see to it that one goroutine at a time uses it.
type stateFile struct {
	path   string
	f      *os.File
	serial uint64
	end    int64 // where the next record goes
	whole  int64 // bytes that were written at once
	synced int64 // up to here it is durable
	room   int64 // the file has zeros from end up to here
	record []byte
}

// writeStateFile replaces the state file at path durably: a crash leaves the
// old one or the new one. errReplaced: nobody knows which; any other error: the
// old one is there.
func writeStateFile(path string, serial uint64, c *content) (*stateFile, error) {
	c.Version = stateVersion
	buf := make([]byte, recordHeadLen+headBytes, recordHeadLen+headBytes+logStep)
	buf = appendSet(buf, serial, setTree, c.tree)
	buf = appendMasks(buf, serial, c.pages)
	buf = appendSet(buf, serial, setDirty, c.dirty)
	buf = appendSet(buf, serial, setIntent, c.intent)
	c.Whole = int64(len(buf))
	text, err := json.Marshal(c.head)
	if err != nil {
		return nil, err
	}
	if len(text) > headBytes-8 {
		return nil, fmt.Errorf("the head of a state file has %d bytes", len(text))
	}
	payload := bytes.Repeat([]byte{' '}, headBytes)
	binary.LittleEndian.PutUint64(payload, serial)
	copy(payload[8:], text)
	appendRecord(buf[:0], serial, 0, recordHead, payload)

	s := &stateFile{path: path, serial: serial, end: c.Whole, whole: c.Whole, synced: c.Whole, room: c.Whole + logStep}
	temp := path + ".new"
	if s.f, err = os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
		return nil, err
	}
	// The zeros: an append within them changes no size, which is a sync less.
	_, err = s.f.Write(append(buf, make([]byte, logStep)...))
	if err == nil {
		err = s.f.Sync()
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err == nil {
		if err = durable.SyncDir(filepath.Dir(path)); err != nil {
			err = fmt.Errorf("%w: %w", errReplaced, err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.f.Close())
	}
	return s, nil
}

// errReplaced says that the new file is in place, but maybe not durably: what
// is appended to the old one is lost, and to the new one, maybe.
var errReplaced = errors.New("the state file was replaced, but not durably")

// append appends one record. It is in the page cache then, so it outlives the
// process; sync makes it outlive the machine. If it fails nothing was appended.
func (s *stateFile) append(kind byte, payload []byte) error {
	s.record = appendRecord(s.record[:0], s.serial, s.end, kind, payload)
	n := int64(len(s.record))
	room := s.room
	if s.end+n > room {
		s.record = append(s.record, make([]byte, logStep)...)
		room = s.end + n + logStep
	}
	if _, err := s.f.WriteAt(s.record, s.end); err != nil {
		return err
	}
	s.end, s.room = s.end+n, room
	return nil
}

func (s *stateFile) sync() error {
	if s.synced == s.end {
		return nil
	}
	if err := fdatasync(s.f); err != nil {
		return err
	}
	s.synced = s.end
	return nil
}

func (s *stateFile) close() error { return s.f.Close() }

// readStateFile reads what is true after a restart in the given boot of the
// machine. fs.ErrNotExist: there is none; errs.Corrupt: it is damaged.
func readStateFile(path, boot string) (c *content, serial uint64, err error) {
	file, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, err
	}
	c, serial, err = parseState(file, boot)
	if errors.Is(err, errDamaged) {
		err = errs.Wrap(errs.Corrupt, err, "the state file %s is damaged, so it is not known which bytes of the volume are its own; apply a snapshot to it, or restore one to a new volume", filepath.Base(path))
	}
	return c, serial, err
}

func parseState(file []byte, boot string) (c *content, serial uint64, err error) {
	c, serial, off, err := parseHead(file)
	if err != nil {
		return nil, 0, err
	}
	sets := map[byte]*set{setTree: c.tree, setDirty: c.dirty, setIntent: c.intent}
	var locals []record
	for {
		r, next, ok := nextRecord(file, serial, off)
		if !ok {
			break
		}
		switch r.kind {
		case recordBits:
			err = r.readBits(sets)
		case recordMasks:
			err = r.readMasks(c.pages)
		case recordIntent:
			err = c.intend(r)
		case recordLocal, recordWhole:
			locals = append(locals, r)
		case recordCommit:
			locals, err = c.commit(r, locals)
		default:
			err = fmt.Errorf("%w: record at %d is of kind %d", errDamaged, r.off, r.kind)
		}
		if err != nil {
			return nil, 0, err
		}
		off = next
	}
	if off < c.Whole {
		return nil, 0, fmt.Errorf("%w: it ends at %d of %d", errDamaged, off, c.Whole)
	}
	if c.Boot == boot {
		// Nobody pulled the plug: what was written is there.
		for _, r := range locals {
			if err := c.localize(r); err != nil {
				return nil, 0, err
			}
		}
	}
	return c, serial, nil
}

const maxSize = 1 << 50

func parseHead(file []byte) (c *content, serial uint64, next int64, err error) {
	if len(file) < recordHeadLen+headBytes {
		return nil, 0, 0, fmt.Errorf("%w: it has %d bytes", errDamaged, len(file))
	}
	serial = binary.LittleEndian.Uint64(file[recordHeadLen:])
	r, next, ok := nextRecord(file, serial, 0)
	if !ok || r.kind != recordHead || len(r.payload) != headBytes {
		return nil, 0, 0, fmt.Errorf("%w: its head does not pass the check", errDamaged)
	}
	var h head
	if err := json.Unmarshal(bytes.TrimRight(r.payload[8:], " "), &h); err != nil {
		return nil, 0, 0, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if h.Version != stateVersion {
		return nil, 0, 0, errs.New(errs.Invalid, "a state file is of version %d, but this program knows only %d; use a newer program", h.Version, stateVersion)
	}
	if h.Size < 1 || h.Size > maxSize || h.Whole < next || h.Audit < 0 {
		return nil, 0, 0, fmt.Errorf("%w: size %d, %d bytes written at once", errDamaged, h.Size, h.Whole)
	}
	return newContent(h), serial, next, nil
}

func (c *content) intend(r record) error {
	return r.pairs(func(first, n uint64) error {
		if first >= uint64(c.intent.n) || n > uint64(c.intent.n)-first {
			return fmt.Errorf("%w: record at %d names regions %d to %d", errDamaged, r.off, first, first+n)
		}
		c.intent.addRange(int64(first), int64(first+n))
		return nil
	})
}

// commit makes true what began before the place that r names.
func (c *content) commit(r record, locals []record) ([]record, error) {
	if len(r.payload) != 8 {
		return nil, fmt.Errorf("%w: record at %d has %d bytes", errDamaged, r.off, len(r.payload))
	}
	before := int64(binary.LittleEndian.Uint64(r.payload))
	for len(locals) > 0 && locals[0].off < before {
		if err := c.localize(locals[0]); err != nil {
			return nil, err
		}
		locals = locals[1:]
	}
	return locals, nil
}

func (c *content) localize(r record) error {
	if r.kind == recordWhole {
		return r.pairs(func(first, n uint64) error {
			if first >= uint64(c.tree.n) || n > uint64(c.tree.n)-first {
				return fmt.Errorf("%w: record at %d names clusters %d to %d", errDamaged, r.off, first, first+n)
			}
			c.tree.removeRange(int64(first), int64(first+n))
			return nil
		})
	}
	return r.pairs(func(cluster, pages uint64) error {
		if cluster >= uint64(c.tree.n) || pages > allPages {
			return fmt.Errorf("%w: record at %d names pages %#x of cluster %d", errDamaged, r.off, pages, cluster)
		}
		if pages == allPages {
			c.tree.remove(int64(cluster))
		} else {
			c.pages.add(int64(cluster), uint16(pages))
		}
		return nil
	})
}

// changed makes dirty what is to count as changed after the restart.
func (c *content) changed() {
	if c.Clean {
		return
	}
	for r := c.intent.next(0); r < c.intent.n; r = c.intent.next(r + 1) {
		c.dirty.addRange(r*regionClusters, min((r+1)*regionClusters, c.dirty.n))
	}
}

func fdatasync(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		for {
			if serr = unix.Fdatasync(int(fd)); !errors.Is(serr, unix.EINTR) {
				return
			}
		}
	})
	return errors.Join(err, serr)
}

// removeFile removes a file that may be absent.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
