package client

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// Format is an export's file format.
type Format string

// Export formats.
const (
	Raw   Format = "raw"
	Qcow2 Format = "qcow2"
)

// Export is an open stream. Read answers io.EOF only after the last byte of
// the whole; when the server or the connection breaks midway it answers an
// error for which errors.Is(err, ErrUnreachable) holds.
type Export struct {
	SizeBytes int64 // length of the stream; -1: not known beforehand

	client  *Client
	stopped func() error // whether the caller has ended the stream
	body    io.ReadCloser
	read    int64
}

func (c *Client) export(ctx context.Context, path []string, format Format) (*Export, error) {
	q := url.Values{}
	set(q, "format", string(format))
	return c.stream(ctx, path, q, "application/octet-stream")
}

func (c *Client) stream(ctx context.Context, path []string, q url.Values, kind string) (*Export, error) {
	resp, err := c.do(ctx, request{method: http.MethodGet, path: path, query: q, accept: kind + ", application/json"})
	if err != nil {
		return nil, err
	}
	return &Export{SizeBytes: resp.ContentLength, client: c, stopped: ctx.Err, body: resp.Body}, nil
}

// Read fills p with the next bytes of the stream.
func (e *Export) Read(p []byte) (int, error) {
	n, err := e.body.Read(p)
	e.read += int64(n)
	switch {
	case err == nil:
		return n, nil
	case err != io.EOF:
		return n, e.cut(err)
	case e.SizeBytes >= 0 && e.read != e.SizeBytes:
		return n, e.cut(io.ErrUnexpectedEOF)
	}
	return n, io.EOF
}

// cut words the end of a stream that is not whole.
func (e *Export) cut(err error) error {
	if stopped := e.stopped(); stopped != nil {
		return stopped
	}
	return fmt.Errorf("the stream was cut after %d bytes, so what came is not whole: %w",
		e.read, &unreachable{server: e.client.server, err: err})
}

// Close ends the stream, early too.
func (e *Export) Close() error { return e.body.Close() }

// ImportVolume asks for a managed volume with the content of a stream.
type ImportVolume struct {
	Name      string
	SizeBytes int64 // exact length of the content
	Type      int
}

// ImportVolume sends r, whose length must be in.SizeBytes exactly, and
// returns when the server has stored it. r is read only if the server accepts
// the rest of the request.
func (c *Client) ImportVolume(ctx context.Context, in ImportVolume, r io.Reader) (Job, error) {
	return c.importStream(ctx, volumesPath, in.query(), in.SizeBytes, r)
}

func (c *Client) importStream(ctx context.Context, kind string, q url.Values, size int64, r io.Reader) (Job, error) {
	return c.job(ctx, request{
		method: http.MethodPost, path: []string{kind, "import"}, query: q,
		stream: &exactReader{r: r, left: size, size: size}, streamSize: size,
	})
}

// sourceError is the caller's stream failing, which is not the server's fault.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }

func (e *sourceError) Unwrap() error { return e.err }

// exactReader gives size bytes of r, and an error if r has fewer or more:
// a file that changed its size is not what the caller meant to import.
type exactReader struct {
	r    io.Reader
	left int64
	size int64
}

func (e *exactReader) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, cmp.Or(e.surplus(), io.EOF)
	}
	if int64(len(p)) > e.left {
		p = p[:e.left]
	}
	n, err := e.r.Read(p)
	e.left -= int64(n)
	switch {
	case err == io.EOF && e.left > 0:
		return n, &sourceError{fmt.Errorf("the stream ended after %d bytes, %d were announced: nothing was imported", e.size-e.left, e.size)}
	case err == io.EOF:
		return n, io.EOF
	case err != nil:
		return n, &sourceError{fmt.Errorf("read the stream to import: %w", err)}
	case e.left == 0:
		// net/http stops reading at the announced length, so what follows must
		// be looked for before the last bytes are handed out.
		if err := e.surplus(); err != nil {
			e.left += int64(n)
			return 0, err
		}
	}
	return n, nil
}

// surplus is nil when r really ends here.
func (e *exactReader) surplus() error {
	var one [1]byte
	n, err := io.ReadFull(e.r, one[:])
	switch {
	case n > 0:
		return &sourceError{fmt.Errorf("the stream is longer than the %d bytes announced: nothing was imported", e.size)}
	case err == io.EOF:
		return nil
	default:
		return &sourceError{fmt.Errorf("read the stream to import: %w", err)}
	}
}
