package file

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/internal/errs"
	"cairn/internal/volume"
)

// probe examines a path that somebody wants to register. Paths may be named
// in its messages: only somebody on this machine gets here.
func probe(path string, forbidden []string) (volume.Probe, error) {
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return volume.Probe{}, errs.New(errs.Invalid, "%q is not an absolute path", path)
	}
	canonical, err := filepath.EvalSymlinks(path)
	if err != nil {
		return volume.Probe{}, probeFailure(path, err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(canonical, &st); err != nil {
		return volume.Probe{}, probeFailure(path, err)
	}
	identity, ok := identityOf(&st)
	if !ok {
		return volume.Probe{}, errs.New(errs.Invalid, "%s is %s; only a regular file or a block device can be a volume", path, kindName(st.Mode))
	}
	if err := notOurs(canonical, &st, forbidden); err != nil {
		return volume.Probe{}, err
	}
	if err := notSynthetic(canonical, &st); err != nil {
		return volume.Probe{}, err
	}
	n, err := open(place{id: path, path: canonical, identity: identity}, os.O_RDONLY, false)
	if err != nil {
		return volume.Probe{}, probeFailure(path, err)
	}
	defer n.f.Close()
	if n.size == 0 {
		return volume.Probe{}, errs.New(errs.Invalid, "%s is empty; a volume needs at least one byte", path)
	}
	format, err := imageFormat(n.f, n.size)
	if err != nil {
		return volume.Probe{}, probeFailure(path, err)
	}
	if format != "" {
		return volume.Probe{}, errs.New(errs.Invalid, "%s holds a %s image, not a raw one; convert it (qemu-img convert -O raw) and register the result", path, format)
	}
	return volume.Probe{Path: canonical, Identity: identity, SizeBytes: n.size, Device: isDevice(&st)}, nil
}

func probeFailure(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return errs.Wrap(errs.NotFound, err, "nothing is at %s", path)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return errs.Wrap(errs.Denied, err, "the server may not read %s; change its permissions", path)
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENOMEDIUM), errors.Is(err, unix.ENODEV):
		return errs.Wrap(errs.Invalid, err, "%s is a device node with no device behind it", path)
	case errors.Is(err, unix.EAGAIN):
		return errs.Wrap(errs.Busy, err, "%s is held by another program's lease; please try later", path)
	}
	return errs.Wrap(errs.Invalid, err, "%s cannot be read", path)
}

func kindName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "a folder"
	case unix.S_IFCHR:
		return "a character device"
	case unix.S_IFIFO:
		return "a fifo"
	case unix.S_IFSOCK:
		return "a socket"
	}
	return "of an unknown kind"
}

// notOurs refuses what lies in a forbidden folder, by whatever name: another
// path through a bind mount, a hard link, or a loop device on such a file.
func notOurs(canonical string, st *unix.Stat_t, forbidden []string) error {
	refuse := errs.New(errs.Invalid, "%s is part of the server's own data and cannot be registered", canonical)
	for _, dir := range forbidden {
		if below(canonical, dir) {
			return refuse
		}
		if isDevice(st) {
			continue
		}
		found, err := holdsFile(dir, st)
		if err != nil {
			return errs.Wrap(errs.Internal, err, "")
		}
		if found {
			return refuse
		}
	}
	if !isDevice(st) {
		return nil
	}
	loops, err := loopDevices()
	if err != nil {
		return errs.Wrap(errs.Internal, err, "")
	}
	for _, l := range loops {
		dev := deviceOf("/dev/" + l.name)
		if dev != st.Rdev && !slices.Contains(partitionsOf(dev), st.Rdev) {
			continue
		}
		for _, dir := range forbidden {
			if below(l.backing, dir) {
				return refuse
			}
		}
	}
	return nil
}

func below(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// holdsFile reports whether the file of st has a name below dir.
func holdsFile(dir string, st *unix.Stat_t) (bool, error) {
	var top unix.Stat_t
	if err := unix.Stat(dir, &top); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return false, fmt.Errorf("examine folder %s: %w", dir, err)
	}
	if top.Dev != st.Dev {
		return false, nil // a filesystem mounted below dir is reached by its path only
	}
	found := false
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		var x unix.Stat_t
		if e.Type().IsRegular() && unix.Lstat(path, &x) == nil && x.Dev == st.Dev && x.Ino == st.Ino {
			found = true
			return fs.SkipAll
		}
		return nil
	})
	return found, err
}

// notSynthetic refuses the files of filesystems that hold no data: they claim
// sizes and give whatever the kernel makes up.
func notSynthetic(path string, st *unix.Stat_t) error {
	if isDevice(st) {
		return nil
	}
	var sf unix.Statfs_t
	if err := unix.Statfs(path, &sf); err != nil {
		return probeFailure(path, err)
	}
	switch sf.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC,
		unix.SECURITYFS_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.BPF_FS_MAGIC:
		return errs.New(errs.Invalid, "%s is a file of the kernel's, not of a disk", path)
	}
	return nil
}

// imageFormat names the image format whose mark the content bears, "" if
// none: then it is taken for raw. Backing up a qcow2 file as if it were the
// disk would give points that look right and hold the wrong bytes.
func imageFormat(r io.ReaderAt, size int64) (string, error) {
	head := make([]byte, min(size, 512))
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	for _, m := range []struct{ mark, format string }{
		{"QFI\xfb", "qcow2"},
		{"QED\x00", "QED"},
		{"KDMV", "VMDK"},
		{"COWD", "VMDK"},
		{"# Disk DescriptorFile", "VMDK"},
		{"vhdxfile", "VHDX"},
		{"conectix", "VHD"},
		{"WithoutFreeSpace", "Parallels"},
		{"WithouFreSpacExt", "Parallels"},
	} {
		if bytes.HasPrefix(head, []byte(m.mark)) {
			return m.format, nil
		}
	}
	if len(head) >= 68 && binary.LittleEndian.Uint32(head[64:]) == 0xbeda107f {
		return "VDI", nil
	}
	// A fixed VHD is a raw disk with its header at the end.
	if size >= 512 {
		foot := make([]byte, 8)
		if _, err := r.ReadAt(foot, size-512); err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		if string(foot) == "conectix" {
			return "VHD", nil
		}
	}
	return "", nil
}
