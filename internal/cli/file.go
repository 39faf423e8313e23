package cli

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"cairn/internal/errs"
)

const (
	copyBuffer = 1 << 20
	holeUnit   = 4096 // the block size of the filesystems that matter
)

// openError tells apart what the user can mend.
func openError(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.NotFound, "there is no file %s", path)
	}
	return err // *PathError names the act and the path already
}

// sourceSize is the size of a raw file or block device.
func sourceSize(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	switch mode := st.Mode(); {
	case mode.IsRegular():
	case mode.Type() == fs.ModeDevice: // a block device: a character device has ModeCharDevice too
	case mode.IsDir():
		return 0, errs.New(errs.Invalid, "%s is a folder, not a raw file or block device", f.Name())
	default:
		return 0, errs.New(errs.Invalid, "%s does not tell its length; pipe it: cairn volume import - --size SIZE --name NAME < %s", f.Name(), f.Name())
	}
	n, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("find the size: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, fmt.Errorf("go to the start: %w", err)
	}
	if n == 0 {
		return 0, errs.New(errs.Invalid, "%s is empty: a volume needs at least one byte", f.Name())
	}
	return n, nil
}

// checkDestination refuses a file that may not be written.
func checkDestination(path string, force bool) error {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		folder := filepath.Dir(path)
		if st, err := os.Stat(folder); err != nil || !st.IsDir() {
			return errs.New(errs.NotFound, "there is no folder %s to write %s to", folder, filepath.Base(path))
		}
		return nil
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return errs.New(errs.Invalid, "%s is no plain file; to write to a device or pipe use --to - and redirect it", path)
	case !force:
		return errs.New(errs.Exists, "%s exists already; --force replaces it", path)
	}
	return nil
}

// saveSparse writes all of r to the file at path, which appears whole and
// durable, or not at all: a temporary file beside it is renamed at the end.
// Blocks of zeros become holes.
func saveSparse(r io.Reader, path string, force bool) (n int64, err error) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // replace the file, not the link to it
	}
	folder := filepath.Dir(path)
	temp := filepath.Join(folder, "."+filepath.Base(path)+".part-"+rand.Text()[:8])
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return 0, err
	}
	defer func() {
		if rest := os.Remove(temp); err != nil && !errors.Is(rest, fs.ErrNotExist) {
			err = errors.Join(err, rest)
		}
	}()
	n, err = writeSparse(f, r)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return n, err
	}
	// Again, since the stream may have taken hours.
	if err := checkDestination(path, force); err != nil {
		return n, err
	}
	if err := os.Rename(temp, path); err != nil {
		return n, err
	}
	return n, syncFolder(folder)
}

func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// writeSparse copies r to the empty file f, leaving out aligned blocks of
// zeros. An error of r is returned as it is.
func writeSparse(f *os.File, r io.Reader) (int64, error) {
	buf := make([]byte, copyBuffer)
	var off int64
	for {
		n, ended, readErr := fill(r, buf)
		if err := writeData(f, buf[:n], off); err != nil {
			return off, err
		}
		off += int64(n)
		if readErr != nil {
			return off, readErr
		}
		if ended {
			return off, f.Truncate(off)
		}
	}
}

// fill reads until buf is full or r ends. Unlike io.ReadFull it never mends an
// error: the error of a cut stream may wrap io.EOF and is no end.
func fill(r io.Reader, buf []byte) (n int, ended bool, err error) {
	for n < len(buf) {
		got, err := r.Read(buf[n:])
		n += got
		if err == io.EOF {
			return n, true, nil
		}
		if err != nil {
			return n, false, err
		}
	}
	return n, false, nil
}

var zeros [holeUnit]byte

// writeData writes the runs of buf that hold anything but zeros. off is a
// multiple of holeUnit.
func writeData(f *os.File, buf []byte, off int64) error {
	start := 0 // of the run that is not yet written
	for at := 0; at < len(buf); at += holeUnit {
		block := buf[at:min(at+holeUnit, len(buf))]
		if !bytes.Equal(block, zeros[:len(block)]) {
			continue
		}
		if at > start {
			if _, err := f.WriteAt(buf[start:at], off+int64(start)); err != nil {
				return err
			}
		}
		start = at + len(block)
	}
	if start < len(buf) {
		if _, err := f.WriteAt(buf[start:], off+int64(start)); err != nil {
			return err
		}
	}
	return nil
}
