package guest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// parts are the things of the host that a guest is made of.
type parts struct {
	qemu, busybox string
	kernel        kernel
	roots         []string          // of packages, then the host's
	programs      map[string]string // name to file
}

// find looks for everything; what cannot be had skips the test.
func find(t testing.TB, config Config, tools []string) parts {
	t.Helper()
	p, err := gather(config, tools)
	var missing missingError
	if errors.As(err, &missing) {
		t.Skipf("skipped: %v (make setup installs what tests need, on Debian)", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// missingError is something that cannot be had here.
type missingError struct{ error }

func missing(format string, args ...any) error {
	return missingError{fmt.Errorf(format, args...)}
}

// gather looks for everything. tools are packages whose programs are for the
// host.
func gather(config Config, tools []string) (parts, error) {
	var p parts
	if runtime.GOARCH != "amd64" || runtime.GOOS != "linux" {
		return p, missing("guests are made of Debian's packages for amd64")
	}
	for tool, path := range map[string]*string{"qemu-system-x86_64": &p.qemu, "busybox": &p.busybox, "apt-get": nil, "dpkg-deb": nil} {
		found, err := exec.LookPath(tool)
		if err != nil {
			return p, missing("no %s here", tool)
		}
		if path != nil {
			*path = found
		}
	}
	c, err := openCache()
	if err != nil {
		return p, fmt.Errorf("open the cache of packages: %w", err)
	}
	for _, name := range slices.Concat([]string{kernelPackage}, config.Packages, tools) {
		root, err := c.unpacked(name)
		if err != nil {
			return p, missing("no Debian package %s here: %w", name, err)
		}
		p.roots = append(p.roots, root)
	}
	if p.kernel, err = openKernel(p.roots[0]); err != nil {
		return p, fmt.Errorf("look into the kernel's package: %w", err)
	}
	p.roots = append(p.roots[1:], "/")
	p.programs = map[string]string{}
	for _, name := range config.Programs {
		if p.programs[name], err = p.program(name); err != nil {
			return p, missing("%w", err)
		}
	}
	return p, nil
}

// program finds a program by its name.
func (p parts) program(name string) (string, error) {
	for _, root := range p.roots {
		for _, dir := range []string{"usr/bin", "usr/sbin", "bin", "sbin"} {
			file := filepath.Join(root, dir, name)
			if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
				return file, nil
			}
		}
	}
	return "", fmt.Errorf("no program %s in %q", name, p.roots)
}

// pack makes the initramfs.
func (p parts) pack(name string, config Config) error {
	a, err := newArchive(name)
	if err != nil {
		return err
	}
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run", "/tmp", "/mnt", "/var/lock"} {
		a.add(dir, typeFolder|0o755, nil)
	}
	a.add("/init", typeRegular|0o755, initScript)
	a.program("/bin/busybox", p.busybox, p.roots)
	for name, file := range p.programs {
		a.program("/host/bin/"+name, file, p.roots)
	}
	for to, from := range config.Files {
		info, err := os.Stat(from)
		if err != nil {
			return err
		}
		a.copy(to, from, uint32(info.Mode().Perm()))
	}
	if err := p.packModules(a, config); err != nil {
		return err
	}
	return a.close()
}

// packModules adds modules, and the order to load them in.
func (p parts) packModules(a *archive, config Config) error {
	names := slices.Clone(always)
	if config.Network {
		names = append(names, "virtio_net")
	}
	parameters := map[string]string{}
	for _, m := range config.Modules {
		name, rest, _ := strings.Cut(m, " ")
		names = append(names, name)
		parameters[name] = rest
	}
	names, err := p.kernel.order(names)
	if err != nil {
		return err
	}
	var order strings.Builder
	for _, name := range names {
		a.copy("/modules/"+name+".ko", p.kernel.modules[name], 0o644)
		fmt.Fprintf(&order, "%s %s\n", name, parameters[name])
	}
	a.add("/modules/order", typeRegular|0o644, []byte(order.String()))
	return nil
}
