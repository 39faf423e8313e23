package guest

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// always are the modules of every guest: disks and ports.
var always = []string{"virtio_pci", "virtio_blk", "virtio_console"}

// byAlias are needs that a kernel asks for by an alias when it runs, which
// the guest has nobody to answer.
var byAlias = map[string][]string{
	"ext4":  {"crc32c_generic"},
	"xfs":   {"crc32c_generic"},
	"btrfs": {"crc32c_generic", "xxhash_generic", "blake2b_generic", "sha256_generic"},
}

// kernel is an unpacked kernel package.
type kernel struct {
	image   string            // its vmlinuz
	modules map[string]string // name to file
	builtin map[string]bool
}

func openKernel(root string) (kernel, error) {
	k := kernel{modules: map[string]string{}, builtin: map[string]bool{}}
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil {
		return k, err
	}
	if len(images) != 1 {
		return k, fmt.Errorf("%s has kernels %q, want one", root, images)
	}
	k.image = images[0]
	// In /lib, or in /usr/lib where Debian moved it to.
	for _, lib := range []string{"lib", "usr/lib"} {
		err := filepath.WalkDir(filepath.Join(root, lib, "modules"), func(path string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case err != nil:
				return err
			case strings.HasSuffix(path, ".ko"):
				k.modules[moduleName(path)] = path
			case d.Name() == "modules.builtin":
				list, err := os.ReadFile(path)
				for line := range strings.Lines(string(list)) {
					k.builtin[moduleName(strings.TrimSpace(line))] = true
				}
				return err
			}
			return nil
		})
		if err != nil {
			return k, err
		}
	}
	return k, nil
}

func moduleName(path string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(path), ".ko"), "-", "_")
}

// order lists wanted modules and what they need, each behind its needs.
func (k kernel) order(wanted []string) ([]string, error) {
	var out []string
	var add func(name string, path []string) error
	add = func(name string, path []string) error {
		if k.builtin[name] || slices.Contains(out, name) {
			return nil
		}
		if slices.Contains(path, name) {
			return fmt.Errorf("modules %q need each other", append(path, name))
		}
		if k.modules[name] == "" {
			return fmt.Errorf("%s has no module %s", k.image, name)
		}
		needs, err := moduleNeeds(k.modules[name])
		if err != nil {
			return err
		}
		for _, need := range append(needs, byAlias[name]...) {
			if err := add(need, append(path, name)); err != nil {
				return err
			}
		}
		out = append(out, name)
		return nil
	}
	for _, name := range wanted {
		if err := add(name, nil); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// moduleNeeds reads the names that a module says it depends on.
func moduleNeeds(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("open module %s: %w", file, err)
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("module %s has no .modinfo", file)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("read .modinfo of %s: %w", file, err)
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		list, ok := strings.CutPrefix(string(entry), "depends=")
		if !ok || list == "" {
			continue
		}
		needs := strings.Split(list, ",")
		for i, n := range needs {
			needs[i] = moduleName(n)
		}
		return needs, nil
	}
	return nil, nil
}
