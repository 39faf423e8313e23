package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"cairn/internal/errs"
)

// A folder belongs to one process at a time, and two things say so:
//
//   - a flock on cairn.lock, which the kernel drops when the process ends,
//     however it ends. It reaches every process of this kernel;
//   - the record cairn-owner.lock, which names host and process. It is taken
//     away by a clean stop. On a network filesystem where a flock does not
//     reach other hosts, it is what keeps them out.
//
// A record of this host whose flock is free is a dead process's, and is
// replaced at once. A record of another host is never broken, whatever its
// age: only an operator can know that the host is off (cairn repo unlock).
const (
	lockName  = "cairn.lock"
	ownerName = "cairn-owner.lock"
)

// lockTries bounds how often a record is looked at again that came or went
// between two looks.
const lockTries = 5

// owner says which process has a folder.
type owner struct {
	Host    string    `json:"host"`
	Machine string    `json:"machine,omitempty"` // derived from the machine id, which is not ours to publish
	Boot    string    `json:"boot"`
	PID     int       `json:"pid"`
	Since   time.Time `json:"since"`
}

// thisProcess is what a record of this process says.
func thisProcess(now time.Time) (owner, error) {
	host, err := os.Hostname()
	if err != nil {
		return owner{}, fmt.Errorf("ask for the host's name: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return owner{}, fmt.Errorf("ask for the boot id: %w", err)
	}
	o := owner{Host: host, Boot: strings.TrimSpace(string(boot)), PID: os.Getpid(), Since: now.UTC().Truncate(time.Second)}
	// Containers may have none; then another boot counts as another host.
	if id, err := os.ReadFile("/etc/machine-id"); err == nil && len(strings.TrimSpace(string(id))) == 32 {
		sum := sha256.Sum256([]byte("cairn folder lock\n" + strings.TrimSpace(string(id))))
		o.Machine = hex.EncodeToString(sum[:16])
	}
	return o, nil
}

// sameHost reports whether a process of o is within reach of p's flock, or
// surely dead. One boot is one kernel, whatever a container calls itself.
// After a reboot it takes both machine id and name: cloned machines share the
// one, replicas in a cluster the other.
func (o owner) sameHost(p owner) bool {
	return o.Boot != "" && o.Boot == p.Boot || o.Machine != "" && o.Machine == p.Machine && o.Host == p.Host
}

func (o owner) String() string {
	return fmt.Sprintf("process %d on host %s, since %s", o.PID, printable(o.Host), o.Since.UTC().Format(time.RFC3339))
}

// folderLock is a folder that belongs to this process.
type folderLock struct {
	file *os.File
	dir  string
	me   owner
}

// lockFolder takes a folder for this process alone. errs.Busy: another process
// has it. errs.Conflict: it is another host's, as far as anyone can tell.
func lockFolder(dir string) (*folderLock, error) {
	me, err := thisProcess(time.Now())
	if err != nil {
		return nil, err
	}
	return lockFolderAs(dir, me)
}

func lockFolderAs(dir string, me owner) (*folderLock, error) {
	f, err := flockFolder(dir)
	if err != nil {
		return nil, err
	}
	l := &folderLock{file: f, dir: dir, me: me}
	if err := l.claim(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return l, nil
}

// flockFolder takes the flock alone.
func flockFolder(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock file: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close() //nolint:errcheck // nothing was written
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	who := ""
	if o, err := readOwner(dir); err == nil {
		who = " (" + o.String() + ")"
	}
	return nil, errs.New(errs.Busy, "another cairn process has the folder %s open%s; stop it first, or use another --data-dir", dir, who)
}

// claim puts this process's record in place. The flock is held.
func (l *folderLock) claim() error {
	tmp, err := l.writeRecord()
	if err != nil {
		return err
	}
	defer os.Remove(tmp) //nolint:errcheck // it has another name by then, or is worth nothing
	path := filepath.Join(l.dir, ownerName)
	for range lockTries {
		// Another host may do the same at this moment: one wins.
		err := publish(tmp, path)
		if err == nil {
			return nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("put the lock record in place: %w", err)
		}
		o, err := readOwner(l.dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if !o.sameHost(l.me) {
			return errs.New(errs.Conflict, "the folder %s belongs to another host: cairn, %s, has not stopped cleanly there or still runs, and two on one folder would destroy it; when it has surely stopped, run: cairn repo unlock --data-dir %s", l.dir, o, l.dir)
		}
		if err := os.Rename(tmp, path); err != nil {
			return fmt.Errorf("replace a dead process's lock record: %w", err)
		}
		return syncFolder(l.dir)
	}
	return errs.New(errs.Busy, "other hosts are locking the folder %s at this moment, please try later", l.dir)
}

// writeRecord makes this process's record durable under a name of its own.
func (l *folderLock) writeRecord() (tmp string, err error) {
	b, err := json.Marshal(l.me)
	if err != nil {
		return "", fmt.Errorf("encode the lock record: %w", err)
	}
	f, err := os.CreateTemp(l.dir, ".cairn-owner-*.lock") // 0600
	if err != nil {
		return "", fmt.Errorf("make the lock record: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(fmt.Errorf("write the lock record: %w", err), os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// readOwner reads a folder's record. fs.ErrNotExist: there is none.
func readOwner(dir string) (owner, error) {
	var o owner
	b, err := os.ReadFile(filepath.Join(dir, ownerName))
	if err != nil {
		return o, fmt.Errorf("read the lock record: %w", err)
	}
	if err := json.Unmarshal(b, &o); err != nil || o.Host == "" || o.Boot == "" {
		return o, errs.Wrap(errs.Conflict, err, "the lock record %s in %s cannot be read, so nobody knows whose the folder is; when no cairn has it open on any host, run: cairn repo unlock --data-dir %s", ownerName, dir, dir)
	}
	return o, nil
}

// Close gives the folder back.
func (l *folderLock) Close() error {
	err := l.clear()
	return errors.Join(err, l.file.Close())
}

// clear removes the record, if it is still this process's.
func (l *folderLock) clear() error {
	o, err := readOwner(l.dir)
	if err != nil {
		return err
	}
	if o != l.me {
		return errs.New(errs.Conflict, "the lock of %s was taken away while this process had it; now it has %s", l.dir, o)
	}
	return removeOwner(l.dir)
}

func removeOwner(dir string) error {
	if err := os.Remove(filepath.Join(dir, ownerName)); err != nil {
		return fmt.Errorf("remove the lock record: %w", err)
	}
	return syncFolder(dir)
}

// printable keeps what a file says from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
