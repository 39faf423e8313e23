package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/go-cmp/cmp"

	"cairn/internal/errs"
	"cairn/internal/service"
)

// salvage streams an image and tells ranges.
type salvage struct {
	*image
	left service.Salvaged
}

func (s *salvage) WriteTo(ctx context.Context, w io.Writer) (service.Salvaged, error) {
	return s.left, s.image.WriteTo(ctx, w, service.FormatRaw)
}

const salvageTarget = zone + "/volume_snapshots/ss-A/export?salvage=1"

// parts splits a salvage's answer.
func parts(t *testing.T, a answer) (data, report []byte, err error) {
	t.Helper()
	kind, params, err := mime.ParseMediaType(a.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/mixed" {
		t.Fatalf("Content-Type %q", a.Header.Get("Content-Type"))
	}
	r := multipart.NewReader(bytes.NewReader(a.body), params["boundary"])
	var out [2][]byte
	for i, kind := range []string{"application/octet-stream", "application/json"} {
		p, err := r.NextRawPart()
		if err != nil {
			return nil, nil, err
		}
		if got := p.Header.Get("Content-Type"); got != kind {
			t.Errorf("part %d: Content-Type %q", i, got)
		}
		if out[i], err = io.ReadAll(p); err != nil {
			return nil, nil, err
		}
		if n := p.Header.Get("Content-Length"); i == 0 && n != fmt.Sprint(len(out[0])) {
			t.Errorf("the first part says that it has %s bytes, it has %d", n, len(out[0]))
		}
	}
	if _, err := r.NextRawPart(); !errors.Is(err, io.EOF) {
		return nil, nil, fmt.Errorf("no closing boundary: %w", err)
	}
	return out[0], out[1], nil
}

func TestSalvage(t *testing.T) {
	f := newFake()
	s := serve(t, f, nil)
	doc := document(t, s)
	const size = 300_001
	many := service.Salvaged{Joined: true}
	for i := range int64(5000) {
		many.Bad = append(many.Bad, service.BadRange{Offset: i * 10, Length: 3, Damaged: i%2 == 0})
	}
	for name, left := range map[string]service.Salvaged{
		"nothing is bad": {}, "two ranges": {Bad: []service.BadRange{{Offset: 7, Length: 3, Damaged: true}, {Offset: 100, Length: 1}}}, "many": many,
	} {
		for _, method := range []string{"GET", "HEAD"} {
			f.salvage = &salvage{newImage(size, -1), left}
			a := s.do(t, method, salvageTarget, "", "")
			if a.StatusCode != http.StatusOK || a.cut != nil {
				t.Fatalf("%s: %s, %v", name, a.Status, a.cut)
			}
			<-f.salvage.closed
			checkDocumented(t, doc, method, salvageTarget, a)
			if diff := cmp.Diff([]made{{"SalvageSnapshot", "ac1/ss-A"}}, f.take()); diff != "" {
				t.Error(diff)
			}
			if method == "HEAD" {
				continue
			}
			data, report, err := parts(t, a)
			if err != nil || string(data) != strings.Repeat("r", size) {
				t.Errorf("%s: %d bytes, %v", name, len(data), err)
			}
			checkSalvageReport(t, doc, report, left)
		}
	}
}

func checkSalvageReport(t *testing.T, doc *openapi3.T, report []byte, left service.Salvaged) {
	t.Helper()
	var got struct {
		SnapshotID string `json:"snapshot_id"`
		Size       int64  `json:"size_bytes"`
		BadBytes   int64  `json:"bad_bytes"`
		Joined     bool
		BadRanges  []struct {
			Offset, Length int64
			Cause          string
		} `json:"bad_ranges"`
	}
	var plain any
	if err := errors.Join(json.Unmarshal(report, &got), json.Unmarshal(report, &plain)); err != nil {
		t.Fatal(err)
	}
	schema := doc.Components.Schemas["SalvageObject"].Value
	if err := doc.ValidateSchemaJSON(schema, plain, openapi3.EnableJSONSchema2020()); err != nil {
		t.Errorf("the report is not as documented: %v", err)
	}
	if got.SnapshotID != "ss-A" || got.Size != 300_001 || got.BadBytes != left.BadBytes() || got.Joined != left.Joined || len(got.BadRanges) != len(left.Bad) || got.BadRanges == nil {
		t.Errorf("report %+v", got)
	}
	for i, b := range left.Bad {
		cause := map[bool]string{true: "damaged", false: "unreadable"}[b.Damaged]
		if g := got.BadRanges[i]; g.Offset != b.Offset || g.Length != b.Length || g.Cause != cause {
			t.Errorf("range %d: %+v, want %+v", i, g, b)
		}
	}
}

// A salvage that breaks midway, or whose hold cannot be let go, is cut.
func TestSalvageThatFails(t *testing.T) {
	f := newFake()
	s := serve(t, f, nil)
	for _, after := range []int64{0, 1, 4096, 299_999} {
		f.salvage = &salvage{image: newImage(300_000, after)}
		a, err := try("tcp", s.tcp, "GET", rawRequest("GET", salvageTarget, "Host: localhost\r\n", ""))
		<-f.salvage.closed
		if err == nil && a.cut == nil {
			t.Errorf("a salvage that broke after %d bytes was taken for whole", after)
		}
	}
	if !strings.Contains(s.log.String(), "chunk 7 is unreadable") {
		t.Error("the log lacks the cause")
	}
	for _, target := range []string{salvageTarget + "&format=qcow2", zone + "/volume_snapshots/ss-A/export?salvage=yes", zone + "/volume_snapshots/ss-A,ss-B/export?salvage=1"} {
		a := s.do(t, "GET", target, "", "")
		checkError(t, a, "1100")
	}
	f.err = errs.New(errs.Corrupt, "nothing of ss-A can be salvaged")
	f.take()
	a := s.do(t, "GET", salvageTarget, "", "")
	if checkError(t, a, "5000"); a.StatusCode != http.StatusInternalServerError {
		t.Errorf("%s", a.Status)
	}
}

func TestSalvageWhoseReaderLeaves(t *testing.T) {
	f := newFake()
	f.salvage = &salvage{image: newImage(200_000, 100_000)}
	f.salvage.block = true
	s := serve(t, f, nil)
	c, err := net.Dial("tcp", s.tcp)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", salvageTarget, s.tcp)
	if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	c.Close()
	<-f.salvage.closed // else the point stays held
}
