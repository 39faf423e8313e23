package powercut

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"

	"golang.org/x/sys/unix"
)

// History is a finished log, and the disk as it was at one moment of it.
//
// A write that was logged before a flush counts as reached by it, although it
// may have been on its way when the flush came; nobody who acknowledges
// anything may rely on that, and none of the writes behind a flush is spared.
type History struct {
	disk    *Disk
	entries []entry
	flushes []int    // entries that are flushes
	base    *os.File // the disk, replayed up to entry done
	done    int
}

// Entries is the number of writes and flushes.
func (h *History) Entries() int { return len(h.entries) }

// Flushes is the number of flushes.
func (h *History) Flushes() int { return len(h.flushes) }

// FlushesBefore counts the flushes that were logged at a moment. All that was
// durable then is there after a cut with that many flushes.
func (h *History) FlushesBefore(p Position) int {
	return sort.Search(len(h.flushes), func(i int) bool { return h.entries[h.flushes[i]].end > int64(p) })
}

// Cut is a moment at which the power goes.
type Cut struct {
	Flushes int    // so many have reached the disk, with all before them
	Later   int    // so many writes behind the last of them were on their way
	Keep    int    // percent of these that arrive
	Torn    int    // bytes that a write tears at; 0 = it arrives whole or not at all
	Seed    uint64 // decides which arrive
}

func (c Cut) String() string {
	if c.Later == 0 {
		return fmt.Sprintf("cut at flush %d", c.Flushes)
	}
	s := fmt.Sprintf("cut %d writes behind flush %d, %d %% of them arrive", c.Later, c.Flushes, c.Keep)
	if c.Torn > 0 {
		s += fmt.Sprintf(", torn at %d bytes", c.Torn)
	}
	return fmt.Sprintf("%s, seed %d", s, c.Seed)
}

// Behind is the number of writes between a flush (1 is the first) and the next.
func (h *History) Behind(flush int) int {
	first, end := h.behind(flush)
	return end - first
}

// behind is the range of entries between a flush and the next.
func (h *History) behind(flush int) (first, end int) {
	if flush > 0 {
		first = h.flushes[flush-1] + 1
	}
	if flush == len(h.flushes) {
		return first, len(h.entries)
	}
	return first, h.flushes[flush]
}

// Reached is the moment of the last entry that a cut knows of: what was asked
// from then on cannot show after it.
func (h *History) Reached(c Cut) Position {
	first, _ := h.behind(c.Flushes)
	if first+c.Later == 0 {
		return 0
	}
	return Position(h.entries[first+c.Later-1].end)
}

// Random draws a cut behind a flush: at it, or with some of the writes that
// follow, whole or torn.
func (h *History) Random(r *rand.Rand, flush int) Cut {
	c := Cut{Flushes: flush, Seed: r.Uint64()}
	behind := h.Behind(flush)
	if behind == 0 {
		return c
	}
	c.Later = 1 + r.IntN(behind)
	c.Keep = []int{20, 50, 80, 100}[r.IntN(4)]
	c.Torn = []int{0, sector, 4096}[r.IntN(3)]
	if c.Torn > 0 && c.Keep == 100 {
		c.Keep = 50 // all of it would not be torn
	}
	return c
}

// Show mounts the disk at Mount as it is after a cut. Whoever changes it
// changes a copy. Cuts must come in the order of their flushes.
func (h *History) Show(c Cut) error {
	if err := h.image(c, h.cutImage()); err != nil {
		return fmt.Errorf("%v: %w", c, err)
	}
	if err := h.disk.loop.attach(h.cutImage()); err != nil {
		return err
	}
	if err := run("mount", h.disk.loop.path(), h.disk.Mount); err != nil {
		return errors.Join(fmt.Errorf("%v: ext4 does not mount: %w", c, err), h.disk.loop.detach())
	}
	return nil
}

// Hide unmounts what Show mounted.
func (h *History) Hide() error {
	if err := run("umount", h.disk.Mount); err != nil {
		return err
	}
	return errors.Join(h.disk.loop.detach(), os.Remove(h.cutImage()))
}

// Keep writes the image of the last cut, as nothing has mounted it yet, to a
// file, for somebody who looks into a failure.
func (h *History) Keep(c Cut, path string) error { return h.image(c, path) }

func (h *History) cutImage() string { return filepath.Join(h.disk.dir, "cut") }

// image writes the disk after a cut to a new file.
func (h *History) image(c Cut, path string) error {
	first, end := h.behind(c.Flushes)
	if first < h.done {
		return fmt.Errorf("flush %d lies before the last cut", c.Flushes)
	}
	if err := h.replay(first); err != nil {
		return err
	}
	to, err := os.Create(path)
	if err != nil {
		return err
	}
	err = errors.Join(copySparse(to, h.base), h.someArrive(to, c, first, min(first+c.Later, end)))
	return errors.Join(err, to.Close())
}

// replay brings base to the state before an entry.
func (h *History) replay(until int) (err error) {
	if h.base == nil {
		if h.base, err = os.Create(filepath.Join(h.disk.dir, "base")); err != nil {
			return err
		}
		st, err := os.Stat(filepath.Join(h.disk.dir, "disk"))
		if err != nil {
			return err
		}
		if err := h.base.Truncate(st.Size()); err != nil {
			return err
		}
	}
	for ; h.done < until; h.done++ {
		if err := h.write(h.base, h.entries[h.done], 0, h.entries[h.done].length); err != nil {
			return err
		}
	}
	return nil
}

// write does a part of a logged write to an image.
func (h *History) write(to *os.File, e entry, from, length int64) error {
	buf := make([]byte, length)
	if _, err := h.disk.log.ReadAt(buf, e.data+from); err != nil && (length > 0 || !errors.Is(err, io.EOF)) {
		return fmt.Errorf("read the log: %w", err)
	}
	_, err := to.WriteAt(buf, e.off+from)
	return err
}

// superblock is where ext4 keeps its first superblock. It is written in place
// and its checksum covers two sectors: ext4 itself does not survive a tear in
// it, so none is made.
const superblock = 4096

// someArrive does those of the writes on their way that arrive.
func (h *History) someArrive(to *os.File, c Cut, first, end int) error {
	r := rand.New(rand.NewPCG(c.Seed, 1))
	for _, e := range h.entries[first:end] {
		grain := e.length
		if c.Torn > 0 && e.off >= superblock {
			grain = int64(c.Torn)
		}
		for at := int64(0); at < e.length; at += grain {
			if r.IntN(100) >= c.Keep {
				continue
			}
			if err := h.write(to, e, at, min(grain, e.length-at)); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkWhole replays everything and compares with the disk that QEMU wrote,
// which proves that log, reader and replay are right.
func (h *History) checkWhole() error {
	disk, err := os.Open(filepath.Join(h.disk.dir, "disk"))
	if err != nil {
		return err
	}
	defer disk.Close()
	if err := h.replay(len(h.entries)); err != nil {
		return err
	}
	got, want := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(want)) {
		n, err := disk.ReadAt(want, off)
		if n > 0 {
			if m, _ := h.base.ReadAt(got[:n], off); m != n || !bytes.Equal(got[:n], want[:n]) {
				return fmt.Errorf("the log, replayed, is not the disk: they differ in the MiB at %d", off)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	err = errors.Join(h.base.Close(), os.Remove(h.base.Name()))
	h.base, h.done = nil, 0
	return err
}

// copySparse copies a file and keeps its holes.
func copySparse(to, from *os.File) error {
	st, err := from.Stat()
	if err != nil {
		return err
	}
	if err := to.Truncate(st.Size()); err != nil {
		return err
	}
	for off := int64(0); off < st.Size(); {
		begin, err := unix.Seek(int(from.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("find data: %w", err)
		}
		if off, err = unix.Seek(int(from.Fd()), begin, unix.SEEK_HOLE); err != nil {
			return fmt.Errorf("find a hole: %w", err)
		}
		if _, err := io.Copy(io.NewOffsetWriter(to, begin), io.NewSectionReader(from, begin, off-begin)); err != nil {
			return err
		}
	}
	return nil
}
