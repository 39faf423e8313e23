package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/extent"
)

// testDisk is a generated disk on its two days. The file at path is what the
// tools back up; it stays one inode and its bytes are moved between the days.
type testDisk struct {
	path    string
	days    [2]string // how it looked
	changed []extent.Range
	size    int64
	data    int64 // bytes that are no holes on day 2
}

// parts of what a quarter of the disk is filled with.
const (
	shareRandom   = 0.10 // photos, archives: does not compress
	shareText     = 0.15 // logs
	shareDatabase = 0.10 // pages that are rewritten at random places
	// the rest: files of this machine's /usr
)

// generate makes day 1, changes about a twentieth of it, and finds out what
// that changed on the disk.
func generate(ctx context.Context, conf config, work string) (*testDisk, error) {
	d := &testDisk{path: filepath.Join(work, "disk.raw"), size: conf.gib << 30}
	d.days = [2]string{filepath.Join(work, "day1.raw"), filepath.Join(work, "day2.raw")}
	f := &filler{rng: rand.New(rand.NewPCG(conf.seed, 2)), root: filepath.Join(work, "mnt"), used: d.size / 4}
	fmt.Fprintf(os.Stderr, "generating a disk of %d GiB with about %d MiB in it (seed %d)\n", conf.gib, f.used>>20, conf.seed)
	if err := os.Mkdir(f.root, 0o755); err != nil {
		return nil, err
	}
	if err := createSparse(d.path, d.size); err != nil {
		return nil, err
	}
	// Not lazily: else the kernel goes on writing tables on the second day.
	if err := command(ctx, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", d.path); err != nil {
		return nil, err
	}
	for i, fill := range []func() error{f.dayOne, f.dayTwo} {
		if err := mounted(ctx, d.path, f.root, fill); err != nil {
			return nil, err
		}
		if err := command(ctx, "cp", "--sparse=always", "--reflink=never", d.path, d.days[i]); err != nil {
			return nil, err
		}
	}
	var err error
	if d.changed, err = differences(ctx, d.days[0], d.days[1]); err != nil {
		return nil, err
	}
	if d.data, err = dataBytes(d.days[1]); err != nil {
		return nil, err
	}
	return d, nil
}

func createSparse(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// command runs a helper that must succeed; its output matters only if not.
func command(ctx context.Context, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return nil
}

// mounted runs fn while the disk is mounted at root, and always unmounts.
func mounted(ctx context.Context, disk, root string, fn func() error) error {
	if err := command(ctx, "mount", "-o", "loop", disk, root); err != nil {
		return err
	}
	err := fn()
	// Also when ctx is over: a mount that stays would keep the work folder.
	return errors.Join(err, command(context.WithoutCancel(ctx), "umount", root))
}

// setDay gives the working file the bytes of a day (0 or 1), in place.
func (d *testDisk) setDay(day int) (err error) {
	from, err := os.Open(d.days[day])
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(d.path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	buf := make([]byte, 1<<20)
	for _, r := range d.changed {
		for off := r.Off; off < r.End(); {
			n := min(int64(len(buf)), r.End()-off)
			if _, err := from.ReadAt(buf[:n], off); err != nil {
				return err
			}
			if _, err := to.WriteAt(buf[:n], off); err != nil {
				return err
			}
			off += n
		}
	}
	return to.Sync()
}

// differences lists the 4 KiB blocks in which two files of one size differ.
func differences(ctx context.Context, a, b string) ([]extent.Range, error) {
	fa, err := os.Open(a)
	if err != nil {
		return nil, err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return nil, err
	}
	defer fb.Close()
	const window, block = 1 << 20, 4096
	pa, pb := make([]byte, window), make([]byte, window)
	var out []extent.Range
	for off := int64(0); ; off += window {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		na, errA := io.ReadFull(fa, pa)
		nb, errB := io.ReadFull(fb, pb)
		if na != nb {
			return nil, fmt.Errorf("one file is longer than the other from byte %d on", off)
		}
		if !bytes.Equal(pa[:na], pb[:nb]) {
			for i := 0; i < na; i += block {
				end := min(i+block, na)
				if !bytes.Equal(pa[i:end], pb[i:end]) {
					out = append(out, extent.Range{Off: off + int64(i), Len: int64(end - i)})
				}
			}
		}
		if errors.Is(errA, io.EOF) || errors.Is(errA, io.ErrUnexpectedEOF) {
			return extent.Normalize(out), nil
		}
		if err := errors.Join(errA, errB); err != nil {
			return nil, err
		}
	}
}

// dataBytes counts what SEEK_DATA shows as data.
func dataBytes(path string) (int64, error) {
	var n int64
	err := eachData(path, func(_ *os.File, r extent.Range) error {
		n += r.Len
		return nil
	})
	return n, err
}

// eachData calls fn for every data range of a file.
func eachData(path string, fn func(f *os.File, r extent.Range) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for off := int64(0); ; {
		start, err := f.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		if off, err = f.Seek(start, unix.SEEK_HOLE); err != nil {
			return err
		}
		if err := fn(f, extent.Range{Off: start, Len: off - start}); err != nil {
			return err
		}
	}
}

// filler writes files below root.
type filler struct {
	rng  *rand.Rand
	root string
	used int64 // bytes to fill
	rest []string
}

func (f *filler) part(share float64) int64 { return int64(share * float64(f.used)) }

func (f *filler) dayOne() error {
	if err := errors.Join(
		f.write("photos.tar", f.part(shareRandom), f.random),
		f.write("syslog", f.part(shareText), f.text),
		f.write("table.db", f.part(shareDatabase), f.page),
	); err != nil {
		return err
	}
	var err error
	// No single file may be a part of the disk that counts.
	if f.rest, err = usrFiles(f.used / 256); err != nil {
		return err
	}
	return f.copyUsr("usr", f.part(1-shareRandom-shareText-shareDatabase))
}

// dayTwo changes about a twentieth: pages of the database here and there, a
// longer log, new files, files that were replaced, files that are gone. The
// shares come to less than that: the filesystem's own records are the rest.
func (f *filler) dayTwo() error {
	return errors.Join(
		f.rewritePages("table.db", f.part(0.010)),
		f.write("syslog", f.part(0.007), f.text),
		f.write("photos-2.tar", f.part(0.006), f.random),
		f.copyUsr("new", f.part(0.006)),
		f.replaceSome(f.part(0.005)),
	)
}

// write appends n bytes to a file, made by next.
func (f *filler) write(name string, n int64, next func(p []byte)) (err error) {
	file, err := os.OpenFile(filepath.Join(f.root, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	buf := make([]byte, 64<<10)
	for ; n > 0; n -= int64(len(buf)) {
		next(buf)
		if _, err := file.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

func (f *filler) random(p []byte) {
	for i := 0; i+8 <= len(p); i += 8 {
		v := f.rng.Uint64()
		for j := range 8 {
			p[i+j] = byte(v >> (8 * j))
		}
	}
}

func (f *filler) text(p []byte) {
	verbs := [...]string{"accepted", "closed", "refused", "retried", "timed out", "moved"}
	line := p[:0]
	for len(line) < len(p) {
		line = fmt.Appendf(line, "Nov %2d %02d:%02d:%02d host%d app[%d]: request %08x from 10.%d.%d.%d %s after %d ms\n",
			f.rng.IntN(30)+1, f.rng.IntN(24), f.rng.IntN(60), f.rng.IntN(60), f.rng.IntN(9), f.rng.IntN(32768), f.rng.Uint32(),
			f.rng.IntN(256), f.rng.IntN(256), f.rng.IntN(256), verbs[f.rng.IntN(len(verbs))], f.rng.IntN(5000))
	}
	copy(p, line[:len(p)])
}

// page fills like a database does: rows with random keys, free space as zeros.
func (f *filler) page(p []byte) {
	for off := 0; off < len(p); off += 4096 {
		page := p[off:min(off+4096, len(p))]
		f.text(page[:len(page)/2])
		f.random(page[len(page)/2 : len(page)*3/4])
		clear(page[len(page)*3/4:])
	}
}

func (f *filler) rewritePages(name string, n int64) (err error) {
	file, err := os.OpenFile(filepath.Join(f.root, name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	// Runs of a few pages, four in five of them in the same hot fifth: what a
	// table with recent rows looks like.
	pages := info.Size() / 4096
	for n > 0 {
		run := make([]byte, 4096*(1+f.rng.IntN(8)))
		f.page(run)
		span := pages
		if f.rng.IntN(5) > 0 {
			span = max(1, pages/5)
		}
		at := min(f.rng.Int64N(span)*4096, max(0, info.Size()-int64(len(run))))
		if _, err := file.WriteAt(run, at); err != nil {
			return err
		}
		n -= int64(len(run))
	}
	return nil
}

// usrFiles lists regular files of this machine that are no larger than limit,
// Go's toolchain first, in an order that is always the same.
func usrFiles(limit int64) ([]string, error) {
	var out []string
	for _, dir := range []string{"/usr/local/go/src", "/usr/local/go/pkg", "/usr/lib", "/usr/share", "/usr/bin"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil //nolint:nilerr // what cannot be read is not taken
			}
			if !d.Type().IsRegular() {
				return nil
			}
			if info, err := d.Info(); err == nil && info.Size() <= limit {
				out = append(out, path)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// copyUsr copies the next n bytes of /usr into a folder.
func (f *filler) copyUsr(dir string, n int64) error {
	buf := make([]byte, 1<<20)
	i := 0
	for ; i < len(f.rest) && n > 0; i++ {
		to := filepath.Join(f.root, dir, f.rest[i])
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		size, err := copyFile(to, f.rest[i], buf)
		if err != nil {
			return err
		}
		n -= size
	}
	f.rest = f.rest[i:]
	return nil
}

func copyFile(to, from string, buf []byte) (n int64, err error) {
	src, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	return io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf)
}

// replaceSome rewrites files below usr with a byte changed, and removes as
// many bytes of others.
func (f *filler) replaceSome(n int64) error {
	var files []string
	err := filepath.WalkDir(filepath.Join(f.root, "usr"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	f.rng.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	for i := 0; i+1 < len(files) && n > 0; i += 2 {
		p, err := os.ReadFile(files[i])
		if err != nil {
			return err
		}
		if len(p) > 0 {
			p[f.rng.IntN(len(p))] ^= 1
		}
		if err := errors.Join(os.Remove(files[i+1]), os.WriteFile(files[i]+".new", p, 0o644), os.Rename(files[i]+".new", files[i])); err != nil {
			return err
		}
		n -= int64(len(p))
	}
	return nil
}
