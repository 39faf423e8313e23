package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"strconv"
)

// Causes of a BadRange.
const (
	Damaged    = "damaged"    // the bytes are missing or wrong
	Unreadable = "unreadable" // the repository's disk did not give them; another try may help
)

// BadRange is a part of a volume that a salvage could not read.
type BadRange struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Cause  string `json:"cause"`
}

// SalvageReport tells what a salvage could not read.
type SalvageReport struct {
	Snapshot  string     `json:"snapshot_id"`
	SizeBytes int64      `json:"size_bytes"`
	BadBytes  int64      `json:"bad_bytes"`
	Joined    bool       `json:"joined"` // some ranges were joined over good bytes, since there were so many
	BadRanges []BadRange `json:"bad_ranges"`
}

// Salvage is an open stream of what is left of a damaged snapshot. Read gives
// the volume's bytes, with zeros where they could not be read. Like an Export
// it answers io.EOF only after the last byte of the whole, the report included.
type Salvage struct {
	SizeBytes int64 // of the volume, which is what Read gives

	export *Export
	parts  *multipart.Reader
	data   io.Reader
	read   int64
	report SalvageReport
	err    error // of every Read from now on
}

// SalvageSnapshot opens a stream of what is left of the snapshot, damaged or
// not. When nothing is left the server answers an *Error.
func (c *Client) SalvageSnapshot(ctx context.Context, id string) (*Salvage, error) {
	resp, err := c.do(ctx, request{
		method: http.MethodGet, path: []string{snapshotsPath, id, "export"}, query: url.Values{"salvage": {"1"}},
		accept: "multipart/mixed, application/json",
	})
	if err != nil {
		return nil, err
	}
	s := &Salvage{export: &Export{SizeBytes: -1, client: c, stopped: ctx.Err, body: resp.Body}}
	if err := s.begin(resp.Header.Get("Content-Type")); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// begin reads up to the volume's first byte.
func (s *Salvage) begin(contentType string) error {
	kind, params, err := mime.ParseMediaType(contentType)
	if err != nil || kind != "multipart/mixed" {
		return fmt.Errorf("%s does not know how to salvage: it answered with %q", s.export.client.server, contentType)
	}
	s.parts = multipart.NewReader(s.export, params["boundary"])
	part, err := s.parts.NextRawPart()
	if err != nil {
		return s.cut(err)
	}
	s.data = part
	s.SizeBytes, err = strconv.ParseInt(part.Header.Get("Content-Length"), 10, 64)
	if err != nil {
		return fmt.Errorf("%s does not tell how long the salvage is: %w", s.export.client.server, err)
	}
	return nil
}

// Read fills p with the next bytes of the volume.
func (s *Salvage) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.data.Read(p)
	s.read += int64(n)
	switch {
	case err == nil:
		return n, nil
	case err != io.EOF:
		s.err = s.cut(err)
	case s.read != s.SizeBytes:
		s.err = s.cut(fmt.Errorf("%w: %d of %d bytes", io.ErrUnexpectedEOF, s.read, s.SizeBytes))
	default:
		if s.err = s.end(); s.err == nil {
			s.err = io.EOF
		}
	}
	return n, s.err
}

// end reads the report and what closes the stream.
func (s *Salvage) end() error {
	part, err := s.parts.NextRawPart()
	if err != nil {
		return s.cut(err)
	}
	b, err := io.ReadAll(io.LimitReader(part, maxAnswer+1))
	if err != nil {
		return s.cut(err)
	}
	if len(b) > maxAnswer {
		return fmt.Errorf("the report of the salvage is over %d bytes", maxAnswer)
	}
	if err := json.Unmarshal(b, &s.report); err != nil {
		return fmt.Errorf("%s does not answer like a Cairn server: %w", s.export.client.server, err)
	}
	if _, err := s.parts.NextRawPart(); err != io.EOF { //nolint:errorlint // a cut stream's error may wrap io.EOF
		return s.cut(err)
	}
	_, err = io.Copy(io.Discard, s.export)
	return err
}

// cut words the end of a stream that is not whole.
func (s *Salvage) cut(err error) error {
	if errors.Is(err, ErrUnreachable) || s.export.stopped() != nil && errors.Is(err, s.export.stopped()) {
		return err
	}
	if err == nil {
		err = errors.New("there are more parts than two")
	}
	return s.export.cut(err)
}

// Report tells what could not be read. It is complete once Read has answered
// io.EOF, and empty before.
func (s *Salvage) Report() SalvageReport { return s.report }

// Close ends the stream, early too.
func (s *Salvage) Close() error { return s.export.Close() }
