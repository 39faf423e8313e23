package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// kernelPackage depends on the newest kernel package, whose name moves with
// every update. Its kernel is small and has the drivers of virtual machines.
const kernelPackage = "linux-image-cloud-amd64"

// fetchLimit bounds one call of apt or dpkg.
const fetchLimit = 3 * time.Minute

// cache is a folder of unpacked Debian packages, tmp/guest of the repository.
// Nothing in it is ever installed. A package is fetched once and then used as
// it is; removing the folder fetches it anew. Processes share it.
type cache struct{ dir string }

// openCache finds the repository that the test runs in.
func openCache() (cache, error) {
	dir, err := os.Getwd()
	if err != nil {
		return cache{}, err
	}
	for {
		_, err := os.Stat(filepath.Join(dir, "go.mod"))
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return cache{}, err
		}
		if dir == filepath.Dir(dir) {
			return cache{}, errors.New("the test runs outside of its repository")
		}
		dir = filepath.Dir(dir)
	}
	c := cache{dir: filepath.Join(dir, "tmp", "guest")}
	return c, os.MkdirAll(c.dir, 0o755)
}

// unpacked is the folder with the content of a package, fetched if it is not
// there yet.
func (c cache) unpacked(name string) (string, error) {
	lock, err := os.OpenFile(filepath.Join(c.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close() // which unlocks it
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	final := filepath.Join(c.dir, name)
	if _, err := os.Stat(final); !errors.Is(err, fs.ErrNotExist) {
		return final, err
	}
	work, err := os.MkdirTemp(c.dir, "new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := fetch(work, name); err != nil {
		return "", err
	}
	// A name means that all is there.
	return final, os.Rename(filepath.Join(work, "root"), final)
}

// fetch downloads a package into dir and unpacks it to dir/root.
func fetch(dir, name string) error {
	real, err := realName(name)
	if err != nil {
		return err
	}
	// The sandbox user of apt cannot write to a folder of ours.
	if _, err := output(dir, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", real); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	if len(debs) != 1 {
		return fmt.Errorf("apt-get download %s left %q", real, debs)
	}
	if _, err := output(dir, "dpkg-deb", "-x", debs[0], "root"); err != nil {
		return err
	}
	return nil
}

// realName is the package that name stands for.
func realName(name string) (string, error) {
	if name != kernelPackage {
		return name, nil
	}
	out, err := output("", "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		depends, ok := strings.CutPrefix(line, "Depends:")
		if !ok {
			continue
		}
		for d := range strings.SplitSeq(depends, ",") {
			if fields := strings.Fields(d); len(fields) > 0 && strings.HasPrefix(fields[0], "linux-image-") {
				return fields[0], nil
			}
		}
	}
	return "", fmt.Errorf("%s depends on no kernel", name)
}

func output(dir, program string, args ...string) (string, error) {
	return outputWith(nil, dir, program, args...)
}

func outputWith(env []string, dir, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "LC_ALL=C"), env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", cmd, err, stderr.String())
	}
	return string(out), nil
}
