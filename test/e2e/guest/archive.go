package guest

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// archive writes an initramfs: cpio in the newc format, of which the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst tells. It is not
// compressed, as the emulated processor would be slow to undo that.
type archive struct {
	file *os.File
	w    *bufio.Writer
	have map[string]bool // names written
	err  error           // the first; nothing is written after it
}

func newArchive(name string) (*archive, error) {
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	return &archive{file: f, w: bufio.NewWriter(f), have: map[string]bool{}}, nil
}

// Types of entries, as in stat(2).
const (
	typeFolder  = 0o040000
	typeRegular = 0o100000
)

// add writes an entry with its folders, unless there is one of that name.
// Names are absolute.
func (a *archive) add(name string, mode uint32, content []byte) {
	name = path.Clean(name)
	if a.have[name] || a.err != nil {
		return
	}
	if parent := path.Dir(name); parent != "/" {
		a.add(parent, typeFolder|0o755, nil)
	}
	a.have[name] = true
	a.entry(strings.TrimPrefix(name, "/"), mode, content)
}

func (a *archive) entry(name string, mode uint32, content []byte) {
	// Inode, mode, owner, group, links, mtime, size, device and its own two
	// numbers, length of the name with its NUL, checksum.
	_, err := fmt.Fprintf(a.w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		len(a.have), mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	a.note(err)
	a.padded(append([]byte(name), 0), 110)
	a.padded(content, 0)
}

// padded writes b and fills up to a multiple of 4, behind a header of some
// length.
func (a *archive) padded(b []byte, header int) {
	_, err := a.w.Write(b)
	a.note(err)
	_, err = a.w.Write(make([]byte, -(header+len(b))&3))
	a.note(err)
}

func (a *archive) note(err error) {
	if a.err == nil {
		a.err = err
	}
}

// copy adds a file of the host.
func (a *archive) copy(name, from string, mode uint32) {
	b, err := os.ReadFile(from)
	if err != nil {
		a.note(err)
		return
	}
	a.add(name, typeRegular|mode, b)
}

// program adds a program of the host with the libraries that it needs, which
// are looked for in the given roots.
func (a *archive) program(name, from string, roots []string) {
	a.copy(name, from, 0o755)
	if err := a.libraries(from, roots); err != nil {
		a.note(fmt.Errorf("libraries of %s: %w", from, err))
	}
}

func (a *archive) libraries(of string, roots []string) error {
	f, err := elf.Open(of)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return err
		}
		loader := strings.TrimRight(string(b), "\x00")
		a.copy(loader, loader, 0o755)
	}
	names, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, name := range names {
		// All to one folder where the loader looks; two of a name cannot be.
		to := "/lib/x86_64-linux-gnu/" + name
		if a.have[to] {
			continue
		}
		from, err := findLibrary(name, roots)
		if err != nil {
			return err
		}
		a.copy(to, from, 0o755)
		if err := a.libraries(from, roots); err != nil {
			return err
		}
	}
	return nil
}

func findLibrary(name string, roots []string) (string, error) {
	for _, root := range roots {
		for _, dir := range []string{"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64"} {
			file := filepath.Join(root, dir, name)
			if _, err := os.Stat(file); err == nil {
				return file, nil
			} else if !errors.Is(err, fs.ErrNotExist) {
				return "", err
			}
		}
	}
	return "", fmt.Errorf("%s is nowhere in %q", name, roots)
}

// close ends the archive.
func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, nil)
	a.note(a.w.Flush())
	a.note(a.file.Close())
	return a.err
}
