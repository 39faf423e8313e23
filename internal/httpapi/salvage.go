package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"reflect"
	"strconv"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"cairn/internal/errs"
	"cairn/internal/service"
)

// salvageObject is the second part of a salvage.
type salvageObject struct {
	SnapshotID string           `json:"snapshot_id"`
	SizeBytes  int64            `json:"size_bytes"`
	BadBytes   int64            `json:"bad_bytes"`
	Joined     bool             `json:"joined" doc:"true: there were so many ranges that some were joined over good bytes"`
	BadRanges  []badRangeObject `json:"bad_ranges"`
}

type badRangeObject struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Cause  string `json:"cause" enum:"damaged,unreadable" doc:"damaged: the bytes are missing or wrong; unreadable: the repository's disk did not give them, so another try may help"`
}

func newSalvageObject(id string, size int64, s service.Salvaged) salvageObject {
	o := salvageObject{SnapshotID: id, SizeBytes: size, BadBytes: s.BadBytes(), Joined: s.Joined, BadRanges: make([]badRangeObject, len(s.Bad))}
	for i, b := range s.Bad {
		o.BadRanges[i] = badRangeObject{b.Offset, b.Length, "unreadable"}
		if b.Damaged {
			o.BadRanges[i].Cause = "damaged"
		}
	}
	return o
}

// salvage answers with two parts: the volume's bytes, and what of them could
// not be read. The list is known only at the end and may be long, so neither
// headers nor trailers (clients bound theirs to a few KiB) can hold it, and a
// second call could find other damage than the first.
func (a *api) salvage(ctx context.Context, in *exportSnapshotInput) (*streamOutput, error) {
	if f := service.Format(in.Format); f != "" && f != service.FormatRaw {
		return nil, badParameter("format", "format cannot be %q with salvage; a salvage is %s", clip(in.Format), service.FormatRaw)
	}
	id, err := pathOrBody("snapshot_id", "ss-ABCDEFGH", in.SnapshotID, "")
	if err != nil {
		return nil, err
	}
	s, err := a.service.SalvageSnapshot(ctx, in.Zone, id)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.String("salvage", id))
	return &streamOutput{Body: func(c huma.Context) { sendSalvage(ctx, c, s, id) }}, nil
}

// sendSalvage streams and closes s. Like an export it is cut when it fails:
// only a whole one ends with the closing boundary.
func sendSalvage(ctx context.Context, c huma.Context, s service.Salvage, id string) {
	r, w := humago.Unwrap(c)
	out := &tail{w: w, control: http.NewResponseController(w)}
	parts := multipart.NewWriter(out)
	h := w.Header()
	h.Set("Content-Type", `multipart/mixed; boundary="`+parts.Boundary()+`"`)
	h.Set("Cache-Control", "no-store")
	var err error
	if r.Method != http.MethodHead {
		err = writeSalvage(ctx, parts, s, id)
	}
	err = errors.Join(err, s.Close())
	if err == nil {
		err = out.end()
	}
	if err == nil {
		return
	}
	requestOf(ctx).err = err
	panic(http.ErrAbortHandler)
}

func writeSalvage(ctx context.Context, parts *multipart.Writer, s service.Salvage, id string) error {
	data, err := parts.CreatePart(textproto.MIMEHeader{
		"Content-Type":        {"application/octet-stream"},
		"Content-Disposition": {fmt.Sprintf("attachment; filename=%q", id+".raw")},
		"Content-Length":      {strconv.FormatInt(s.SizeBytes(), 10)},
	})
	if err != nil {
		return err
	}
	n := &counter{w: data}
	left, err := s.WriteTo(ctx, n)
	if err != nil {
		return err
	}
	if n.n != s.SizeBytes() {
		return errs.New(errs.Internal, "the salvage of %s has %d bytes instead of %d", id, n.n, s.SizeBytes())
	}
	list, err := parts.CreatePart(textproto.MIMEHeader{"Content-Type": {"application/json"}})
	if err != nil {
		return err
	}
	if err := json.NewEncoder(list).Encode(newSalvageObject(id, s.SizeBytes(), left)); err != nil {
		return err
	}
	if bad := left.BadBytes(); bad > 0 {
		requestOf(ctx).note(slog.Int64("bad_bytes", bad))
	}
	return parts.Close()
}

// counter counts what is written.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// documentSalvage describes the two parts, in their order.
func (a *api) documentSalvage() {
	doc := a.huma.OpenAPI()
	doc.Paths[exportSnapshotPath].Get.Responses["200"].Content["multipart/mixed"] = &huma.MediaType{Schema: &huma.Schema{
		Type: huma.TypeObject, Description: "With salvage=1: the volume's bytes, then what of them could not be read.",
		Properties: map[string]*huma.Schema{
			"content": {Type: huma.TypeString, Format: "binary"},
			"report":  doc.Components.Schemas.Schema(reflect.TypeFor[salvageObject](), true, ""),
		},
	}}
}
