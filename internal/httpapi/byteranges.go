package httpapi

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/service"
)

// byteRangesType is content in parts, each with its Content-Range (RFC 9110
// §14.6). What no part holds is zeros.
const byteRangesType = "multipart/byteranges"

// inflow is the content of an import's body; sized says that the body's length
// is the content's too. All types but multipart/byteranges are raw content,
// whatever they are called.
func inflow(req *request) (open func(size int64) service.Inflow, sized bool, err error) {
	kind, params, _ := mime.ParseMediaType(req.kind) // "" if it is none
	if kind != byteRangesType {
		return func(size int64) service.Inflow { return service.Flat(req.body, size) }, true, nil
	}
	boundary := params["boundary"]
	if boundary == "" {
		return nil, false, badParameter("Content-Type", "the Content-Type %s has no boundary; say boundary=… and send the parts with it", byteRangesType)
	}
	return func(size int64) service.Inflow {
		return &byteRanges{parts: multipart.NewReader(req.body, boundary), size: size}
	}, false, nil
}

// byteRanges is the inflow of a multipart/byteranges body.
type byteRanges struct {
	parts *multipart.Reader
	size  int64
	part  *multipart.Part // nil before the first
	left  int64           // of part
}

func (b *byteRanges) Next() (extent.Range, error) {
	if b.part != nil {
		// A part may be longer than its range says.
		var one [1]byte
		switch n, err := io.ReadFull(b.part, one[:]); {
		case n > 0 || b.left > 0:
			return extent.Range{}, errs.New(errs.Invalid, "a part of the body has another length than its Content-Range says; send what it says")
		case !errors.Is(err, io.EOF):
			return extent.Range{}, cutBody(err)
		}
	}
	part, err := b.parts.NextRawPart()
	if err == io.EOF { //nolint:errorlint // as it is, it comes after the last boundary; wrapped, the body was cut
		return extent.Range{}, nil
	}
	if err != nil {
		return extent.Range{}, cutBody(err)
	}
	header := part.Header.Get("Content-Range")
	var first, last, size int64
	if _, err := fmt.Sscanf(header+"\n", "bytes %d-%d/%d\n", &first, &last, &size); err != nil || first < 0 || last < first || last >= size || size != b.size {
		return extent.Range{}, errs.New(errs.Invalid, "a part of the body has the Content-Range %q; send bytes FIRST-LAST/%d, both within the size", clip(header), b.size)
	}
	b.part, b.left = part, last-first+1
	return extent.Range{Off: first, Len: b.left}, nil
}

func (b *byteRanges) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.part.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

func cutBody(err error) error {
	return errs.Wrap(errs.Invalid, err, "the body ended before its last boundary; send it whole")
}
