package httpapi_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"cairn/internal/chain"
	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/httpapi"
	"cairn/internal/job"
	"cairn/internal/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	jobID   = "6fcb4e9a-5398-4ddb-89c2-d0917bbdc4af"
	callID  = "e3332d54-4567-4295-8275-3dc9f50a6960"
	pathKey = "/srv/secret/disk.raw"
)

// made is one call that reached the service.
type made struct {
	Name string
	Arg  any
}

// fake is a service that records its calls and answers with what it is given.
type fake struct {
	mu    sync.Mutex
	calls []made
	ids   []string // request ids of the calls that carry one

	err    error
	panics any
	block  chan struct{} // calls wait for it, or for their context
	image  *image
	export service.Export // of every served point
	// salvage is what SalvageSnapshot opens.
	salvage *salvage
	feed    chan job.Job
	page    service.SnapshotPage
	vols    service.VolumePage
	ins     service.InstancePage
	imgs    service.SnapshotPage
	console string
	jobs    []job.Job
	job     job.Job
	plan    service.DeletePlan
	stored  []byte         // what an import sent
	ranges  []extent.Range // of stored, as they came

	refused string
}

var instant = time.Date(2026, 11, 23, 8, 0, 0, 987654321, time.FixedZone("east", 8*3600))

func newFake() *fake {
	return &fake{
		feed: make(chan job.Job, 16),
		job: job.Job{
			ID: jobID, Action: job.CreateSnapshots, Zone: "ac1", RequestID: callID, Status: job.Pending,
			CreateTime: instant, ResourceIDs: []string{"ss-AAAAAAAA"},
		},
		page: service.SnapshotPage{Total: 7, Snapshots: []service.SnapshotView{fullView(), incrementView()}},
		vols: service.VolumePage{Total: 3, Volumes: []service.VolumeView{{Volume: service.Volume{
			ID: "vol-AAAAAAAA", Zone: "ac1", Name: "root", Type: 2, Driver: "registered", Path: pathKey, Identity: "dev:1",
			SizeBytes: 3<<30 + 1, Status: service.VolumeAvailable, CreateTime: instant, StatusTime: instant,
		}}}},
		ins: service.InstancePage{Total: 2, Instances: []service.Instance{{
			VolumeView: service.VolumeView{
				Volume: service.Volume{
					ID: "ins-AAAAAAAA", Zone: "ac1", Name: "web", Driver: "managed", SizeBytes: 1<<30 + 1, Status: service.VolumeInUse,
					CreateTime: instant, StatusTime: instant, InstanceID: "ins-AAAAAAAA", Device: "vda", CPUs: 2, Memory: 512 << 20, Image: "img-AAAAAAAA",
				},
				Export: service.Export{URIs: []string{"nbd+unix:///x", "nbd://h/x"}, Missing: 5},
			},
			State: service.InstanceRunning, ImageName: "golden",
			Volumes: []service.Volume{{ID: "vol-AAAAAAAA", Name: "data", Device: "vdb", SizeBytes: 7}},
		}}},
		imgs: service.SnapshotPage{Total: 4, Snapshots: []service.SnapshotView{{Progress: 1, Snapshot: service.Snapshot{
			Point: chain.Point{
				ID: "img-AAAAAAAA", ResourceID: "img-AAAAAAAA", RootID: "img-AAAAAAAA", Full: true, Status: chain.Available, VirtualSize: 1<<30 + 1, SizeBytes: 77,
			},
			Zone: "ac1", Name: "golden", CreateTime: instant, StatusTime: instant, ResourceType: service.ResourceImage, Reason: "it was imported",
		}}}},
		console: "login:",
		plan:    service.DeletePlan{IDs: []chain.ID{"ss-BBBBBBBB", "ss-AAAAAAAA"}, FreedBytes: 4096},
	}
}

func fullView() service.SnapshotView {
	return service.SnapshotView{Progress: 1, Snapshot: service.Snapshot{
		Point: chain.Point{
			ID: "ss-AAAAAAAA", ResourceID: "vol-AAAAAAAA", RootID: "ss-AAAAAAAA", Full: true, Status: chain.Available,
			VirtualSize: 5 << 30, SizeBytes: 1<<20 + 1, SnapshotTime: instant,
		},
		Zone: "ac1", Name: "first <&>", Description: "", CreateTime: instant, StatusTime: instant, IsTaken: true, HeadChain: true,
		ResourceType: "volume", ResourceName: "root", GroupID: "g", Consistency: "crash", CBT: "scan", Reason: "the first point",
		TotalBytes: 2<<20 + 2, TotalCount: 2, LatestTime: instant.Add(time.Hour), UniqueBytes: 9, UniqueKnown: true,
	}}
}

func incrementView() service.SnapshotView {
	return service.SnapshotView{Progress: 0.25, Snapshot: service.Snapshot{
		Point: chain.Point{
			ID: "ss-BBBBBBBB", ResourceID: "vol-AAAAAAAA", ParentID: "ss-AAAAAAAA", RootID: "ss-AAAAAAAA", Status: chain.Pending,
			IsHead: true, VirtualSize: 5 << 30,
		},
		Zone: "ac1", Name: "second", Transition: "creating", CreateTime: instant, StatusTime: instant, ResourceType: "volume", HeadChain: true,
	}}
}

// record notes a call, without its request id, and tells what to answer.
func (f *fake) record(ctx context.Context, name, requestID string, arg any) error {
	f.mu.Lock()
	f.calls = append(f.calls, made{name, arg})
	f.ids = append(f.ids, requestID)
	block, err, panics := f.block, f.err, f.panics
	f.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if panics != nil {
		panic(panics)
	}
	return err
}

// take returns what was called since the last take.
func (f *fake) take() []made {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.calls
	f.calls = nil
	return out
}

func origin(o service.Origin) (service.Origin, string) {
	id := o.RequestID
	o.RequestID = ""
	return o, id
}

func (f *fake) Snapshots(ctx context.Context, in service.SnapshotFilter) (service.SnapshotPage, error) {
	return f.page, f.record(ctx, "Snapshots", "", in)
}

func (f *fake) CreateSnapshots(ctx context.Context, in service.CreateSnapshots) (job.Job, error) {
	var id string
	in.Origin, id = origin(in.Origin)
	return f.job, f.record(ctx, "CreateSnapshots", id, in)
}

func (f *fake) DeleteSnapshots(ctx context.Context, in service.SnapshotSet) (job.Job, error) {
	var id string
	in.Origin, id = origin(in.Origin)
	return f.job, f.record(ctx, "DeleteSnapshots", id, in)
}

func (f *fake) PlanDeleteSnapshots(ctx context.Context, in service.SnapshotSet) (service.DeletePlan, error) {
	var id string
	in.Origin, id = origin(in.Origin)
	return f.plan, f.record(ctx, "PlanDeleteSnapshots", id, in)
}

func (f *fake) ApplySnapshots(ctx context.Context, in service.ApplySnapshots) (job.Job, error) {
	var id string
	in.Origin, id = origin(in.Origin)
	return f.job, f.record(ctx, "ApplySnapshots", id, in)
}

func (f *fake) CaptureInstance(ctx context.Context, in service.CaptureInstance) (job.Job, error) {
	var id string
	in.Origin, id = origin(in.Origin)
	return f.job, f.record(ctx, "CaptureInstance", id, in)
}

func (f *fake) CreateVolumeFromSnapshot(ctx context.Context, in service.CloneSnapshot) (job.Job, error) {
	var id string
	in.Origin, id = origin(in.Origin)
	return f.job, f.record(ctx, "CreateVolumeFromSnapshot", id, in)
}

func (f *fake) RenameSnapshot(ctx context.Context, in service.Rename) (service.Snapshot, error) {
	var id string
	in.Origin, id = origin(in.Origin)
	return fullView().Snapshot, f.record(ctx, "RenameSnapshot", id, in)
}

func (f *fake) ExportSnapshot(ctx context.Context, zone, id string) (service.Image, error) {
	return f.image, f.record(ctx, "ExportSnapshot", "", zone+"/"+id)
}

func (f *fake) SalvageSnapshot(ctx context.Context, zone, id string) (service.Salvage, error) {
	return f.salvage, f.record(ctx, "SalvageSnapshot", "", zone+"/"+id)
}

func (f *fake) ServeSnapshot(ctx context.Context, zone, id string) (service.Export, error) {
	return f.export, f.record(ctx, "ServeSnapshot", "", zone+"/"+id)
}

func (f *fake) UnserveSnapshot(ctx context.Context, zone, id string, force bool) error {
	return f.record(ctx, "UnserveSnapshot", "", fmt.Sprintf("%s/%s %v", zone, id, force))
}

func (f *fake) Volumes(ctx context.Context, in service.VolumeFilter) (service.VolumePage, error) {
	return f.vols, f.record(ctx, "Volumes", "", in)
}

func (f *fake) CreateVolumes(ctx context.Context, in service.CreateVolumes) (job.Job, error) {
	var id string
	in.Origin, id = origin(in.Origin)
	return f.job, f.record(ctx, "CreateVolumes", id, in)
}

func (f *fake) RegisterVolume(ctx context.Context, in service.RegisterVolume) (service.Volume, error) {
	var id string
	in.Origin, id = origin(in.Origin)
	return f.vols.Volumes[0].Volume, f.record(ctx, "RegisterVolume", id, in)
}

func (f *fake) ImportVolume(ctx context.Context, in service.ImportVolume) (job.Job, error) {
	var id string
	in.Origin, id = origin(in.Origin)
	stream := in.Stream
	in.Stream = nil
	if err := f.record(ctx, "ImportVolume", id, in); err != nil {
		return job.Job{}, err
	}
	return f.store(stream, in.SizeBytes)
}

// store reads what an import sends.
func (f *fake) store(stream service.Inflow, size int64) (job.Job, error) {
	f.stored, f.ranges = make([]byte, size), nil
	for {
		r, err := stream.Next()
		if err != nil || r.Len == 0 {
			return f.job, err
		}
		if _, err := io.ReadFull(stream, f.stored[r.Off:r.End()]); err != nil {
			return job.Job{}, errs.Wrap(errs.Invalid, err, "the stream ended early")
		}
		f.ranges = append(f.ranges, r)
	}
}

func (f *fake) ExportVolume(ctx context.Context, zone, id string) (service.Image, error) {
	return f.image, f.record(ctx, "ExportVolume", "", zone+"/"+id)
}

func (f *fake) DeleteVolumes(ctx context.Context, in service.VolumeSet) (job.Job, error) {
	var id string
	in.Origin, id = origin(in.Origin)
	return f.job, f.record(ctx, "DeleteVolumes", id, in)
}

func (f *fake) FillVolumes(ctx context.Context, in service.VolumeSet) error {
	var id string
	in.Origin, id = origin(in.Origin)
	return f.record(ctx, "FillVolumes", id, in)
}

func (f *fake) RenameVolumes(ctx context.Context, in service.Rename) error {
	var id string
	in.Origin, id = origin(in.Origin)
	return f.record(ctx, "RenameVolumes", id, in)
}

func (f *fake) ResizeVolumes(ctx context.Context, in service.ResizeVolumes) (job.Job, error) {
	var id string
	in.Origin, id = origin(in.Origin)
	return f.job, f.record(ctx, "ResizeVolumes", id, in)
}

func (f *fake) AttachVolumes(ctx context.Context, in service.AttachVolumes) (job.Job, error) {
	var id string
	in.Origin, id = origin(in.Origin)
	return f.job, f.record(ctx, "AttachVolumes", id, in)
}

func (f *fake) DetachVolumes(ctx context.Context, in service.DetachVolumes) (job.Job, error) {
	var id string
	in.Origin, id = origin(in.Origin)
	return f.job, f.record(ctx, "DetachVolumes", id, in)
}

func (f *fake) Instances(ctx context.Context, in service.InstanceFilter) (service.InstancePage, error) {
	return f.ins, f.record(ctx, "Instances", "", in)
}

func (f *fake) RunInstances(ctx context.Context, in service.RunInstances) (job.Job, error) {
	var id string
	in.Origin, id = origin(in.Origin)
	return f.job, f.record(ctx, "RunInstances", id, in)
}

// instances records a call about a set of instances.
func (f *fake) instances(ctx context.Context, name string, in service.InstanceSet) (job.Job, error) {
	var id string
	in.Origin, id = origin(in.Origin)
	return f.job, f.record(ctx, name, id, in)
}

func (f *fake) StartInstances(ctx context.Context, in service.InstanceSet) (job.Job, error) {
	return f.instances(ctx, "StartInstances", in)
}

func (f *fake) StopInstances(ctx context.Context, in service.InstanceSet) (job.Job, error) {
	return f.instances(ctx, "StopInstances", in)
}

func (f *fake) RestartInstances(ctx context.Context, in service.InstanceSet) (job.Job, error) {
	return f.instances(ctx, "RestartInstances", in)
}

func (f *fake) DeleteInstances(ctx context.Context, in service.InstanceSet) (job.Job, error) {
	return f.instances(ctx, "DeleteInstances", in)
}

func (f *fake) RenameInstances(ctx context.Context, in service.Rename) error {
	var id string
	in.Origin, id = origin(in.Origin)
	return f.record(ctx, "RenameInstances", id, in)
}

func (f *fake) InstanceConsole(ctx context.Context, zone, id string, off int64) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(f.console)), f.record(ctx, "InstanceConsole", "", fmt.Sprintf("%s/%s %d", zone, id, off))
}

func (f *fake) Images(ctx context.Context, in service.ImageFilter) (service.SnapshotPage, error) {
	return f.imgs, f.record(ctx, "Images", "", in)
}

func (f *fake) ImportImage(ctx context.Context, in service.ImportImage) (job.Job, error) {
	var id string
	in.Origin, id = origin(in.Origin)
	stream := in.Stream
	in.Stream = nil
	if err := f.record(ctx, "ImportImage", id, in); err != nil {
		return job.Job{}, err
	}
	return f.store(stream, in.SizeBytes)
}

func (f *fake) ExportImage(ctx context.Context, zone, id string) (service.Image, error) {
	return f.image, f.record(ctx, "ExportImage", "", zone+"/"+id)
}

func (f *fake) DeleteImages(ctx context.Context, in service.ImageSet) (job.Job, error) {
	var id string
	in.Origin, id = origin(in.Origin)
	return f.job, f.record(ctx, "DeleteImages", id, in)
}

func (f *fake) RenameImages(ctx context.Context, in service.Rename) error {
	var id string
	in.Origin, id = origin(in.Origin)
	return f.record(ctx, "RenameImages", id, in)
}

func (f *fake) Job(ctx context.Context, id string) (job.Job, error) {
	return f.job, f.record(ctx, "Job", "", id)
}

func (f *fake) Jobs(ctx context.Context, in service.JobFilter) (service.JobPage, error) {
	return service.JobPage{Jobs: f.jobs, Total: len(f.jobs)}, f.record(ctx, "Jobs", "", in)
}

func (f *fake) UnfinishedJobs(ctx context.Context, zone string) ([]job.Job, error) {
	return f.jobs, f.record(ctx, "UnfinishedJobs", "", zone)
}

func (f *fake) CancelJob(ctx context.Context, id string) (job.Job, error) {
	return f.job, f.record(ctx, "CancelJob", "", id)
}

func (f *fake) Scrub(ctx context.Context, o service.Origin, opts service.ScrubOptions) (job.Job, error) {
	return f.job, f.record(ctx, "Scrub", o.RequestID, opts)
}

func (f *fake) Prune(ctx context.Context, o service.Origin, opts service.PruneOptions) (job.Job, error) {
	return f.job, f.record(ctx, "Prune", o.RequestID, opts)
}

func (f *fake) Undelete(ctx context.Context, in service.SnapshotSet) (job.Job, error) {
	id := in.RequestID
	in.RequestID = ""
	return f.job, f.record(ctx, "Undelete", id, in)
}

func (f *fake) CollectionRefused() string { return f.refused }

func (f *fake) Subscribe(ctx context.Context) <-chan job.Job {
	out := make(chan job.Job)
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case j := <-f.feed:
				select {
				case out <- j:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}

// image is an export of size bytes that fails after some.
type image struct {
	size   int64
	fail   int64 // WriteTo fails after so many bytes; < 0: never
	block  bool  // then it waits for its context
	closed chan struct{}
}

func newImage(size, fail int64) *image {
	return &image{size: size, fail: fail, closed: make(chan struct{})}
}

func (i *image) SizeBytes() int64 { return i.size }

func (i *image) WriteTo(ctx context.Context, w io.Writer, f service.Format) error {
	data := bytes.Repeat([]byte(f[:1]), int(i.size))
	if i.fail >= 0 {
		data = data[:i.fail]
	}
	for part := range slices.Chunk(data, 64<<10) {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	if i.block {
		<-ctx.Done()
		return ctx.Err()
	}
	if i.fail >= 0 {
		return fmt.Errorf("chunk 7 is unreadable")
	}
	return nil
}

func (i *image) Close() error { close(i.closed); return nil }

// server serves a fake over TCP and over a unix socket.
type server struct {
	tcp, unix string // addresses
	http      *http.Server
	log       *lockedBuffer
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func serve(t testing.TB, f *fake, change func(*httpapi.Config)) *server {
	t.Helper()
	s := &server{log: &lockedBuffer{}}
	cfg := httpapi.Config{
		Service: f, Zones: []string{"ac1", "ac2"}, Version: "1.2.3",
		Log: slog.New(slog.NewJSONHandler(s.log, nil)), Heartbeat: time.Hour,
	}
	if change != nil {
		change(&cfg)
	}
	h, err := httpapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.http = httpapi.NewServer(h, cfg.Log)
	dir, err := os.MkdirTemp("", "cairn") // t.TempDir may be too long for a socket's name
	if err != nil {
		t.Fatal(err)
	}
	var served, open sync.WaitGroup
	s.http.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed, http.StateHijacked:
			open.Done()
		}
	}
	for _, at := range []struct {
		network, address string
		out              *string
	}{{"tcp", "127.0.0.1:0", &s.tcp}, {"unix", dir + "/s", &s.unix}} {
		l, err := net.Listen(at.network, at.address)
		if err != nil {
			t.Fatal(err)
		}
		*at.out = l.Addr().String()
		served.Go(func() { _ = s.http.Serve(httpapi.Listener(l)) })
	}
	t.Cleanup(func() {
		s.http.Close()
		served.Wait()
		open.Wait() // net/http lingers after some refusals
		os.RemoveAll(dir)
	})
	return s
}

// answer is a response, read whole.
type answer struct {
	*http.Response
	body []byte
	cut  error // reading the body failed
}

func (a answer) json(t testing.TB) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("the answer is not JSON: %v\n%s", err, a.body)
	}
	return v
}

func (a answer) object(t testing.TB) map[string]any {
	t.Helper()
	o, ok := a.json(t).(map[string]any)
	if !ok {
		t.Fatalf("the answer is not an object: %s", a.body)
	}
	return o
}

// send writes a request as it stands and reads one answer.
func send(t testing.TB, network, address, method, raw string) answer {
	t.Helper()
	a, err := try(network, address, method, raw)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// try is send for requests that may get no answer at all. Like many clients
// it reads only after everything is written.
func try(network, address, method, raw string) (answer, error) {
	c, err := net.Dial(network, address)
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return answer{}, err
	}
	if _, err := io.WriteString(c, raw); err != nil {
		return answer{}, fmt.Errorf("the server did not take the request: %w", err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), httptest.NewRequest(method, "/", nil))
	if err != nil {
		return answer{}, fmt.Errorf("no answer: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp, body, err}, nil
}

// do sends an HTTP/1.1 request; target and headers go out unchanged.
func (s *server) do(t testing.TB, method, target, headers, body string) answer {
	t.Helper()
	return send(t, "tcp", s.tcp, method, rawRequest(method, target, "Host: "+s.tcp+"\r\n"+headers, body))
}

func (s *server) doUnix(t testing.TB, method, target, headers, body string) answer {
	t.Helper()
	return send(t, "unix", s.unix, method, rawRequest(method, target, "Host: anything.example\r\n"+headers, body))
}

func rawRequest(method, target, headers, body string) string {
	if body != "" {
		headers += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	return method + " " + target + " HTTP/1.1\r\n" + headers + "\r\n" + body
}

func validUUID(s string) bool { return uuid.Validate(s) == nil }
