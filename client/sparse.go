package client

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

const (
	// sparseUnit is what a server stores or leaves out: smaller holes would
	// cost more than they save.
	sparseUnit = 64 << 10
	// sparseBuffer is how much is read of a Sparse at once.
	sparseBuffer = 1 << 20
)

// Sparse is content that knows its holes. One goroutine uses it, from front to
// back.
type Sparse interface {
	// Data is where the first bytes at or after off begin that may be
	// anything but zeros, and where they end at the latest; they are at least
	// one. io.EOF: only zeros follow. This is asked once after all was read;
	// another error then still keeps the server from taking the content for
	// whole.
	Data(ctx context.Context, off int64) (begin, end int64, err error)
	// ReadAt fills buf whole from byte off, with zeros in holes.
	ReadAt(ctx context.Context, buf []byte, off int64) error
}

// ImportSparse is ImportVolume without sending the holes of r. After an error
// r may still be in use for a moment.
func (c *Client) ImportSparse(ctx context.Context, in ImportVolume, r Sparse) (Job, error) {
	return c.importSparse(ctx, volumesPath, in.query(), in.SizeBytes, r)
}

func (c *Client) importSparse(ctx context.Context, kind string, q url.Values, size int64, r Sparse) (Job, error) {
	edge := rand.Text()
	body := &ranges{
		data:   func(off int64) (int64, int64, error) { return r.Data(ctx, off) },
		readAt: func(buf []byte, off int64) error { return r.ReadAt(ctx, buf, off) },
		size:   size, edge: edge,
	}
	return c.job(ctx, request{
		method: http.MethodPost, path: []string{kind, "import"}, query: q,
		stream: bufio.NewReaderSize(body, sparseBuffer), streamSize: -1, kind: "multipart/byteranges; boundary=" + edge,
	})
}

func (in ImportVolume) query() url.Values {
	return url.Values{
		"volume_name": {in.Name},
		"size_bytes":  {strconv.FormatInt(in.SizeBytes, 10)},
		"volume_type": {strconv.Itoa(in.Type)},
	}
}

// ranges is a body of the type multipart/byteranges (RFC 9110 §14.6): a part
// for each run of data, with its Content-Range.
type ranges struct {
	data   func(off int64) (begin, end int64, err error)
	readAt func(buf []byte, off int64) error
	size   int64
	edge   string // the boundary

	words    []byte // headers and boundaries that are not yet read
	off, end int64  // what is not yet read of the present part
	err      error  // what follows words and part
}

func (b *ranges) Read(p []byte) (int, error) {
	for {
		switch {
		case len(b.words) > 0:
			n := copy(p, b.words)
			b.words = b.words[n:]
			return n, nil
		case b.off < b.end:
			p = p[:min(int64(len(p)), b.end-b.off)]
			if err := b.readAt(p, b.off); err != nil {
				return 0, &sourceError{fmt.Errorf("read what is to be imported: %w", err)}
			}
			b.off += int64(len(p))
			return len(p), nil
		case b.err != nil:
			return 0, b.err
		}
		b.next()
	}
}

// next begins the next part, or the end.
func (b *ranges) next() {
	begin, end, err := b.data(b.end)
	switch {
	case err == io.EOF: //nolint:errorlint // a source that broke off may wrap it
		b.words = fmt.Appendf(nil, "\r\n--%s--\r\n", b.edge)
		b.err = io.EOF
	case err != nil:
		b.err = &sourceError{fmt.Errorf("look for what is to be imported: %w", err)}
	case begin < b.end || end <= begin || end > b.size:
		b.err = &sourceError{fmt.Errorf("what is to be imported has the impossible range %d to %d after %d of %d bytes", begin, end, b.end, b.size)}
	default:
		b.off = max(b.end, begin/sparseUnit*sparseUnit)
		b.end = min((end+sparseUnit-1)/sparseUnit*sparseUnit, b.size)
		b.words = fmt.Appendf(nil, "\r\n--%s\r\nContent-Range: bytes %d-%d/%d\r\n\r\n", b.edge, b.off, b.end-1, b.size)
	}
}
