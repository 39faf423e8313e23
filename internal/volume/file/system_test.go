package file

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// run runs a system program with a time limit.
func run(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func mustRun(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := run(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// need skips the test, saying why, unless it runs as root with the programs.
func need(t testing.TB, programs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: only root can mount and make loop devices")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("skipped: %s is not installed", p)
		}
	}
}

// sparse makes a sparse file.
func sparse(t testing.TB, dir string, size int64) string {
	t.Helper()
	f, err := os.CreateTemp(dir, "disk-*.raw")
	ok(t, err)
	ok(t, f.Truncate(size))
	ok(t, f.Close())
	return f.Name()
}

// attach puts a loop device on a file until the test ends.
func attach(t testing.TB, file string, args ...string) string {
	t.Helper()
	need(t, "losetup")
	out, err := run(t, "losetup", append(append([]string{"--find", "--show"}, args...), file)...)
	if err != nil {
		t.Skipf("skipped: no loop device: %v: %s", err, out)
	}
	t.Cleanup(func() { mustRun(t, "losetup", "--detach", out) })
	return out
}

// mount makes a filesystem on a device and mounts it until the test ends.
func mount(t testing.TB, kind, device string, mkfs ...string) string {
	t.Helper()
	need(t, "mkfs."+kind)
	mustRun(t, "mkfs."+kind, append(mkfs, device)...)
	dir := t.TempDir()
	mountAt(t, dir, "-t", kind, device)
	return dir
}

// memory gives a folder in memory, where disks under test sync in no time.
func memory(t testing.TB, size string) string {
	t.Helper()
	dir := t.TempDir()
	mountAt(t, dir, "-t", "tmpfs", "-o", "size="+size, "none")
	return dir
}

// mountAt mounts until the test ends.
func mountAt(t testing.TB, dir string, args ...string) {
	t.Helper()
	need(t, "mount")
	if out, err := run(t, "mount", append(args, dir)...); err != nil {
		t.Skipf("skipped: cannot mount %v: %v: %s", args, err, out)
	}
	t.Cleanup(func() { mustRun(t, "umount", dir) })
}

// filesystem gives a folder on a filesystem of the kind; "": wherever
// temporary files are.
func filesystem(t testing.TB, kind string) string {
	t.Helper()
	switch kind {
	case "":
		return t.TempDir()
	case "tmpfs":
		return memory(t, "64m")
	}
	need(t, "losetup", "mkfs."+kind)
	device := attach(t, sparse(t, memory(t, "400m"), 400<<20))
	flags := map[string][]string{"ext4": {"-q", "-F"}, "xfs": {"-q", "-f", "-m", "reflink=1"}, "btrfs": {"-q", "-f"}}
	return mount(t, kind, device, flags[kind]...)
}

func join(dir, name string) string { return filepath.Join(dir, name) }
