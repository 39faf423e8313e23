package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"cairn/client"
	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/qcow2"
)

// importing sends content to become an object of size bytes.
type importing struct {
	stream func(ctx context.Context, size int64, r io.Reader) (client.Job, error)
	sparse func(ctx context.Context, size int64, r client.Sparse) (client.Job, error)
}

func (a *app) volumeImport() *cobra.Command {
	var volumeType int
	cmd := a.importCommand("volume", "a volume", func(c *client.Client, name string) importing {
		in := client.ImportVolume{Name: name, Type: volumeType}
		return importing{
			stream: func(ctx context.Context, size int64, r io.Reader) (client.Job, error) {
				in.SizeBytes = size
				return c.ImportVolume(ctx, in, r)
			},
			sparse: func(ctx context.Context, size int64, r client.Sparse) (client.Job, error) {
				in.SizeBytes = size
				return c.ImportSparse(ctx, in, r)
			},
		}
	})
	cmd.Flags().IntVar(&volumeType, "type", 0, "volume type `N`")
	return cmd
}

func (a *app) imageImport() *cobra.Command {
	return a.importCommand("image", "an image", func(c *client.Client, name string) importing {
		in := client.ImportImage{Name: name}
		return importing{
			stream: func(ctx context.Context, size int64, r io.Reader) (client.Job, error) {
				in.SizeBytes = size
				return c.ImportImage(ctx, in, r)
			},
			sparse: func(ctx context.Context, size int64, r client.Sparse) (client.Job, error) {
				in.SizeBytes = size
				return c.ImportSparseImage(ctx, in, r)
			},
		}
	})
}

func (a *app) importCommand(kind, made string, into func(c *client.Client, name string) importing) *cobra.Command {
	var name, format, size string
	var wait bool
	cmd := &cobra.Command{
		Use: "import FILE --name NAME", Short: "Make " + made + " with the content of a raw or qcow2 file, a device or stdin", Args: arity(1, 1),
		Long: "Make " + made + ` with the content of a raw file, a qcow2 file or a block device,
which is read here, where the command runs. Holes are not sent.

A file that begins as qcow2 files do is read as one: versions 2 and 3, with
compressed clusters too, and of internal snapshots none but the present content.
One that needs a backing file, a data file or a secret is refused with what to
do. The first bytes of a raw disk are its owner's to choose: say --format raw
for one from somebody you do not trust.

With - stdin is read, whose exact length --size must tell. It must be raw.`,
		Example: fmt.Sprintf("  cairn %s import disk.raw --name disk\n  cairn %s import disk.qcow2 --name disk --wait\n  zcat disk.raw.gz | cairn %s import - --size 10 --name disk", kind, kind, kind),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			switch {
			case name == "":
				return s.usage("--name is needed")
			case format != "" && client.Format(format) != client.Raw && client.Format(format) != client.Qcow2:
				return s.usage("--format is raw or qcow2, not %q", format)
			}
			send := s.importFile
			if args[0] == "-" {
				send = s.importStdin
			}
			j, err := send(ctx, into(s.client, name), args[0], client.Format(format), size)
			if err != nil {
				return err
			}
			return s.finish(ctx, j, wait)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&name, "name", "", "`NAME` of the "+kind)
	f.StringVar(&format, "format", "", "`FORMAT` of the file: raw or qcow2 (default: what its first bytes say)")
	f.StringVar(&size, "size", "", "exact `SIZE` of stdin in GB (2^30), or with a unit: 1.5G, 512M, 4096B")
	waitFlag(cmd, &wait)
	completeFlag(cmd, "format", string(client.Raw), string(client.Qcow2))
	return cmd
}

func (s *session) importStdin(ctx context.Context, in importing, path string, format client.Format, size string) (client.Job, error) {
	stdin := bufio.NewReaderSize(s.In, copyBuffer)
	if format == "" && size != "" {
		if head, _ := stdin.Peek(4); qcow2.Is(head) { // what keeps it from being read is told below
			format = client.Qcow2
		}
	}
	if format == client.Qcow2 {
		return client.Job{}, s.usage("a qcow2 file is not read from front to back, so it cannot come from stdin: name the file itself; --format raw takes a raw disk that only begins like one")
	}
	if size == "" {
		return client.Job{}, s.usage("stdin does not tell its length: --size is needed")
	}
	total, err := parseSize(size)
	if err != nil {
		return client.Job{}, s.usage("%s", err)
	}
	m := s.newMeter("import " + path)
	j, err := in.stream(ctx, total, &metered{r: stdin, m: m, total: total})
	m.stop(err == nil)
	return j, err
}

func (s *session) importFile(ctx context.Context, in importing, path string, format client.Format, size string) (client.Job, error) {
	if size != "" {
		return client.Job{}, s.usage("--size is for stdin; a file's size is its own")
	}
	f, err := os.Open(path)
	if err != nil {
		return client.Job{}, openError(path, err)
	}
	defer f.Close()
	length, err := sourceSize(f)
	if err != nil {
		return client.Job{}, err
	}
	before, err := f.Stat()
	if err != nil {
		return client.Job{}, err
	}
	if writtenByQEMU(f) {
		return client.Job{}, errs.New(errs.Busy, "%s is in use by a running machine or another QEMU program; stop that first, then import", path)
	}
	image, err := s.openImage(f, length, format)
	if err != nil {
		return client.Job{}, err
	}
	m := s.newMeter("import " + path)
	j, err := in.sparse(ctx, image.Size(), &fileSource{Image: image, f: f, before: before, m: m})
	m.stop(err == nil)
	return j, err
}

// openImage opens a file of length bytes as what it is, or is said to be.
func (s *session) openImage(f *os.File, length int64, format client.Format) (qcow2.Image, error) {
	if format == "" {
		var head [4]byte
		if _, err := f.ReadAt(head[:], 0); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if format = client.Raw; qcow2.Is(head[:]) {
			s.note("%s is read as qcow2, as it begins like that; --format raw takes it as it is", f.Name())
			format = client.Qcow2
		}
	}
	if format == client.Raw {
		return &rawFile{f, length}, nil
	}
	image, err := qcow2.Open(f, length)
	if err != nil {
		return nil, errs.Wrap(errs.KindOf(err), err, "%s", f.Name())
	}
	if image.Size() == 0 {
		return nil, errs.New(errs.Invalid, "%s is a qcow2 file of a volume without a byte: a volume needs at least one", f.Name())
	}
	if n := image.Snapshots(); n > 0 {
		s.note("%s has %d internal snapshots; only its present content is imported", f.Name(), n)
	}
	return image, nil
}

// writtenByQEMU reports whether a QEMU has f open for writing: it then holds a
// shared lock on byte 101 (QEMU's block/file-posix.c: RAW_LOCK_PERM_BASE plus
// the bit of BLK_PERM_WRITE). Filesystems without such locks never say so.
func writtenByQEMU(f *os.File) bool {
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: 101, Len: 1}
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l) == nil && l.Type != unix.F_UNLCK
}

// fileSource is an image as the client wants it: metered, its errors with the
// file's name, and at the end the question whether it was one content at all.
type fileSource struct {
	qcow2.Image
	f      *os.File
	before os.FileInfo
	m      meter
}

func (s *fileSource) Data(ctx context.Context, off int64) (begin, end int64, err error) {
	r, err := s.Image.Data(ctx, off)
	switch {
	case err == io.EOF: //nolint:errorlint // what wraps it is no end
		s.m.set(s.Size(), s.Size())
		if err := s.unchanged(); err != nil {
			return 0, 0, err
		}
		return 0, 0, io.EOF
	case err != nil:
		return 0, 0, errs.Wrap(errs.KindOf(err), err, "%s", s.f.Name())
	}
	s.m.set(r.Off, s.Size())
	return r.Off, r.End(), nil
}

func (s *fileSource) ReadAt(ctx context.Context, buf []byte, off int64) error {
	if err := s.Image.ReadAt(ctx, buf, off); err != nil {
		return errs.Wrap(errs.KindOf(err), err, "%s", s.f.Name())
	}
	s.m.set(off+int64(len(buf)), s.Size())
	return nil
}

// unchanged fails if the file was written since it was opened. A device's
// times say nothing.
func (s *fileSource) unchanged() error {
	now, err := s.f.Stat()
	if err != nil {
		return err
	}
	if now.Mode().IsRegular() && (now.Size() != s.before.Size() || !now.ModTime().Equal(s.before.ModTime())) {
		return errs.New(errs.Conflict, "%s was written while it was read, so nothing was imported; stop who writes it, then import", s.f.Name())
	}
	return nil
}

// rawFile is the image that a raw file or block device is.
type rawFile struct {
	f    *os.File
	size int64
}

func (r *rawFile) Size() int64 { return r.size }

func (r *rawFile) Data(_ context.Context, off int64) (extent.Range, error) {
	if off >= r.size {
		return extent.Range{}, io.EOF
	}
	begin, err := r.f.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO), err == nil && begin >= r.size:
		return extent.Range{}, io.EOF
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP): // a device, or a filesystem without holes
		return extent.Range{Off: off, Len: r.size - off}, nil
	case err != nil:
		return extent.Range{}, err
	}
	end, err := r.f.Seek(begin, unix.SEEK_HOLE)
	switch {
	case errors.Is(err, unix.ENXIO):
		return extent.Range{}, errShorter()
	case err != nil:
		return extent.Range{}, err
	}
	return extent.Range{Off: begin, Len: min(end, r.size) - begin}, nil
}

func errShorter() error {
	return errs.New(errs.Conflict, "it became shorter while it was read, so nothing was imported; stop who writes it, then import")
}

func (r *rawFile) ReadAt(_ context.Context, buf []byte, off int64) error {
	n, err := r.f.ReadAt(buf, off)
	if n == len(buf) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return errShorter()
	}
	return err
}
