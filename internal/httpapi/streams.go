package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"cairn/internal/errs"
	"cairn/internal/service"
)

// stallTimeout cuts a stream whose reader takes nothing any more: an export
// holds its volume.
const stallTimeout = 10 * time.Minute

const (
	importPath         = "/v2/zone/{zone}/volumes/import"
	importImagePath    = "/v2/zone/{zone}/images/import"
	exportImagePath    = "/v2/zone/{zone}/images/{image_id}/export"
	exportVolumePath   = "/v2/zone/{zone}/volumes/{volume_id}/export"
	exportSnapshotPath = "/v2/zone/{zone}/volume_snapshots/{snapshot_id}/export"
	eventPath          = "/v2/zone/{zone}/notifier/stream"
)

// streaming reports whether a route's requests may last, and whether it is
// the client that sends.
func streaming(pattern string) (lasts, sends bool) {
	_, path, _ := strings.Cut(pattern, " ")
	switch path {
	case importPath, importImagePath:
		return true, true
	case exportVolumePath, exportSnapshotPath, exportImagePath, eventPath:
		return true, false
	}
	return false, false
}

type streamOutput struct {
	Body func(huma.Context)
}

// ExportQuery is exported for huma, like Zoned.
type ExportQuery struct {
	Format string `query:"format" enum:"raw,qcow2" doc:"default raw"`
}

type exportVolumeInput struct {
	Zoned
	VolumeID string `path:"volume_id" example:"vol-ABCDEFGH"`
	ExportQuery
}

type exportSnapshotInput struct {
	Zoned
	SnapshotPath
	ExportQuery
	Salvage string `query:"salvage" enum:"0,1" doc:"1: give what is left of a damaged point, raw, and tell what is not; the answer is multipart/mixed"`
}

func (a *api) exportVolume(ctx context.Context, in *exportVolumeInput) (*streamOutput, error) {
	return export(ctx, in.Zone, "volume_id", "vol-ABCDEFGH", in.VolumeID, in.Format, a.service.ExportVolume)
}

func (a *api) exportSnapshot(ctx context.Context, in *exportSnapshotInput) (*streamOutput, error) {
	salvage, err := flag("salvage", in.Salvage)
	if err != nil {
		return nil, err
	}
	if salvage {
		return a.salvage(ctx, in)
	}
	return export(ctx, in.Zone, "snapshot_id", "ss-ABCDEFGH", in.SnapshotID, in.Format, a.service.ExportSnapshot)
}

func export(ctx context.Context, zone, parameter, example, path, format string,
	open func(ctx context.Context, zone, id string) (service.Image, error),
) (*streamOutput, error) {
	f := service.Format(format)
	switch f {
	case "":
		f = service.FormatRaw
	case service.FormatRaw, service.FormatQcow2:
	default:
		return nil, badParameter("format", "format cannot be %q; it is %s or %s", clip(format), service.FormatRaw, service.FormatQcow2)
	}
	id, err := pathOrBody(parameter, example, path, "")
	if err != nil {
		return nil, err
	}
	image, err := open(ctx, zone, id)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.String("export", id), slog.String("format", string(f)))
	return &streamOutput{Body: func(c huma.Context) { sendImage(ctx, c, image, id, f) }}, nil
}

// sendImage streams and closes image. Once a byte is out, a failure cuts the
// connection: a reader must never take part of a volume for the whole.
func sendImage(ctx context.Context, c huma.Context, image service.Image, id string, f service.Format) {
	r, w := humago.Unwrap(c)
	req := requestOf(ctx)
	out := &tail{w: w, control: http.NewResponseController(w)}
	err := func() error {
		h := w.Header()
		h.Set("Content-Type", "application/octet-stream")
		h.Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", id+"."+string(f)))
		h.Set("Cache-Control", "no-store")
		if f == service.FormatRaw {
			h.Set("Content-Length", strconv.FormatInt(image.SizeBytes(), 10))
		}
		if r.Method == http.MethodHead {
			return nil
		}
		if err := image.WriteTo(ctx, out, f); err != nil {
			return err
		}
		if f == service.FormatRaw && out.n != image.SizeBytes() {
			return errs.New(errs.Internal, "the export of %s has %d bytes instead of %d", id, out.n, image.SizeBytes())
		}
		return nil
	}()
	err = errors.Join(err, image.Close())
	if err == nil {
		err = out.end()
	}
	if err == nil {
		return
	}
	if out.n == 0 && r.Method != http.MethodHead {
		writeError(w, r, err)
		return
	}
	req.err = err
	panic(http.ErrAbortHandler)
}

// tail keeps the last byte back until end: a reader that counts bytes has the
// whole only when nothing can go wrong any more (was it one moment?) and what
// the export held is free for the reader's next call. Each write has its own
// deadline.
type tail struct {
	w       io.Writer
	control *http.ResponseController
	n       int64 // bytes taken
	last    [1]byte
}

func (t *tail) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := t.end(); err != nil {
		return 0, err
	}
	if err := t.send(p[:len(p)-1]); err != nil {
		return 0, err
	}
	t.last[0] = p[len(p)-1]
	t.n += int64(len(p))
	return len(p), nil
}

// end sends the byte that was kept back.
func (t *tail) end() error {
	if t.n == 0 {
		return nil
	}
	return t.send(t.last[:])
}

func (t *tail) send(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	// Not every ResponseWriter (a test's recorder) has deadlines.
	_ = t.control.SetWriteDeadline(time.Now().Add(stallTimeout))
	_, err := t.w.Write(p)
	return err
}

// events streams the zone's jobs as they change status: hb first and then
// regularly, message for each change.
func (a *api) events(ctx context.Context, in *Zoned) (*streamOutput, error) {
	return &streamOutput{Body: func(c huma.Context) {
		r, w := humago.Unwrap(c)
		h := w.Header()
		h.Set("Content-Type", "text/event-stream")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Accel-Buffering", "no") // proxies must not collect events
		if r.Method == http.MethodHead {
			return
		}
		if err := a.sendEvents(ctx, w, in.Zone); err != nil {
			requestOf(ctx).err = err
		}
	}}, nil
}

// sendEvents returns when the client left, the server stops, or the service
// closes the subscription.
func (a *api) sendEvents(ctx context.Context, w http.ResponseWriter, zone string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	jobs := a.service.Subscribe(ctx) // before the first hb: who saw it misses nothing
	beat := time.NewTicker(a.heartbeat)
	defer beat.Stop()
	control := http.NewResponseController(w)
	send := func(event string) error {
		// Not every ResponseWriter (a test's recorder) has deadlines.
		_ = control.SetWriteDeadline(time.Now().Add(stallTimeout))
		if _, err := io.WriteString(w, event); err != nil {
			return err
		}
		return control.Flush()
	}
	const heartbeat = "event:hb\ndata:\n\n"
	if err := send(heartbeat); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-stopping(ctx):
			return nil
		case <-beat.C:
			if err := send(heartbeat); err != nil {
				return err
			}
		case j, open := <-jobs:
			if !open {
				return nil
			}
			if j.Zone != zone {
				continue
			}
			data, err := json.Marshal(newJobObject(j))
			if err != nil {
				return err
			}
			if err := send("event:message\ndata:" + string(data) + "\n\n"); err != nil {
				return err
			}
		}
	}
}

func (a *api) registerStreams() {
	register(a, call{http.MethodGet, exportVolumePath, "exportVolume", "volumes", "Stream a volume's content", 0}, a.exportVolume)
	register(a, call{http.MethodGet, exportSnapshotPath, "exportSnapshot", "volume_snapshots", "Stream a point's content", 0}, a.exportSnapshot)
	register(a, call{http.MethodGet, eventPath, "streamEvents", "jobs", "Server-sent events: hb, and message with a job at each change of its status", 0}, a.events)
	a.documentDownload(exportVolumePath)
	a.documentDownload(exportSnapshotPath)
	a.documentSalvage()
	a.huma.OpenAPI().Paths[eventPath].Get.Responses["200"].Content = map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString}}}
}

// documentDownload says that a call answers with content.
func (a *api) documentDownload(path string) {
	binary := &huma.Schema{Type: huma.TypeString, Format: "binary"}
	a.huma.OpenAPI().Paths[path].Get.Responses["200"].Content = map[string]*huma.MediaType{"application/octet-stream": {Schema: binary}}
}

// documentUpload says that a call's body is a volume's content.
func (a *api) documentUpload(path string) {
	binary := &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}
	a.huma.OpenAPI().Paths[path].Post.RequestBody = &huma.RequestBody{
		Description: "The volume's raw content. As multipart/byteranges (RFC 9110 §14.6) its holes are left out: " +
			"each part has its Content-Range, they come in order, and what no part holds is zeros; size_bytes is then needed.",
		Required: true,
		Content:  map[string]*huma.MediaType{"application/octet-stream": binary, byteRangesType: binary},
	}
}
