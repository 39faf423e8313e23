package powercut

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// loopDevice is the number of a loop device that nobody else uses: who asks
// for any free one is given a lower one first.
type loopDevice int

func (l loopDevice) path() string { return fmt.Sprintf("/dev/loop%d", int(l)) }

// addLoop makes a loop device of a number of its own.
func addLoop() (loopDevice, error) {
	for range 100 {
		n := 10_000 + rand.IntN(10_000)
		err := loopControl(unix.LOOP_CTL_ADD, n)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return 0, err
		}
		l := loopDevice(n)
		if _, err := os.Stat(l.path()); err != nil { // /dev is not the kernel's
			return 0, errors.Join(err, l.remove())
		}
		return l, nil
	}
	return 0, errors.New("every number is taken")
}

func (l loopDevice) remove() error {
	return busyRetry(func() error { return loopControl(unix.LOOP_CTL_REMOVE, int(l)) })
}

func loopControl(request uint, n int) error {
	f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetInt(int(f.Fd()), request, n)
}

// attach shows a file as the device.
func (l loopDevice) attach(path string) error {
	return busyRetry(func() error { return run("losetup", l.path(), path) })
}

func (l loopDevice) detach() error { return run("losetup", "-d", l.path()) }

// busyRetry tries again for ten seconds: somebody who looks at every new device
// may have it open, on a busy machine for more than the one second that this was.
func busyRetry(do func() error) (err error) {
	for range 500 {
		if err = do(); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// run runs a tool that is quick or stuck.
func run(name string, args ...string) error {
	if out, err := exec.Command("timeout", append([]string{"30", name}, args...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}
