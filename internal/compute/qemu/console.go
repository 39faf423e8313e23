package qemu

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	trimEvery   = 30 * time.Second
	consoleMost = 4 << 20
	consoleLess = 1 << 20
	blockSize   = 4096
)

// trimConsoles keeps guests from filling the disk with what they print. QEMU
// has the files open for appending, so their beginning is made a hole: offsets
// stay, and what was trimmed reads as zeros.
func (d *Driver) trimConsoles() {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	for {
		select {
		case <-d.ending:
			return
		case <-tick.C:
		}
		entries, err := os.ReadDir(d.dir)
		if err != nil {
			d.log.Warn("look for consoles", "error", err)
			continue
		}
		for _, e := range entries {
			if err := trimConsole(filepath.Join(d.dir, e.Name(), consoleLog)); err != nil {
				d.log.Warn("trim a console", "machine", e.Name(), "error", err)
			}
		}
	}
}

func trimConsole(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := f.Stat()
	var st unix.Stat_t
	err = errors.Join(err, unix.Fstat(int(f.Fd()), &st))
	if err == nil && st.Blocks*512 > consoleMost {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, (info.Size()-consoleLess)&^(blockSize-1))
	}
	return errors.Join(err, f.Close())
}
