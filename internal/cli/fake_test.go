package cli_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"cairn/client"
)

// fake is a server of the API that keeps everything in memory. Jobs take one
// look to begin and one to end. A name that starts with "broken" makes its job
// fail, one that starts with "endless" makes it last.
type fake struct {
	mu        sync.Mutex
	clock     time.Time
	volumes   []*client.Volume // newest first, as all lists
	snapshots []*client.Snapshot
	jobs      []*client.Job
	looks     map[string]int // at a job
	fate      map[string]string
	content   map[string][]byte // of volumes and snapshots
	damaged   bool
	cut       bool // streams break midway
	page      bool // a proxy answers instead
}

func newFake() *fake {
	return &fake{
		clock: time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC),
		looks: map[string]int{}, fate: map[string]string{}, content: map[string][]byte{},
	}
}

func (f *fake) now() client.Time {
	f.clock = f.clock.Add(time.Second)
	return client.Time{Time: f.clock}
}

// handler serves f. local says that the caller came by the unix socket.
func (f *fake) handler(local bool) http.Handler {
	mux := http.NewServeMux()
	for pattern, do := range map[string]func(r *http.Request) any{
		"GET /volumes":                                f.listVolumes,
		"GET /instances":                              func(*http.Request) any { return client.InstancePage{Instances: []client.Instance{}} },
		"POST /volumes":                               f.createVolume,
		"POST /volumes/import":                        f.importVolume,
		"POST /volumes/resize":                        f.resizeVolumes,
		"POST /volumes/fill":                          f.fillVolumes,
		"PUT /volumes/{id}":                           f.renameVolume,
		"DELETE /volumes/{ids}":                       f.deleteVolumes,
		"GET /volumes/{id}/export":                    f.export,
		"GET /volume_snapshots":                       f.listSnapshots,
		"POST /volume_snapshots":                      f.createSnapshots,
		"POST /volume_snapshots/apply":                f.apply,
		"POST /volume_snapshots/create_volume/{id}":   f.createFrom,
		"PUT /volume_snapshots/{id}":                  f.renameSnapshot,
		"DELETE /volume_snapshots/{ids}":              f.deleteSnapshots,
		"POST /volume_snapshots/serve/{id}":           func(r *http.Request) any { return f.serve(r, local) },
		"DELETE /volume_snapshots/serve/{id}":         f.unserve,
		"GET /volume_snapshots/{id}/export":           f.export,
		"GET /job/{id}":                               f.getJob,
		"GET /jobs":                                   f.listJobs,
		"POST /job/{id}/cancel":                       f.cancelJob,
		"POST /repository/scrub":                      f.scrub,
		"POST /repository/prune":                      f.prune,
		"POST /lease":                                 f.lease,
		"POST /volumes/register":                      func(r *http.Request) any { return f.register(r, local) },
		"GET /notifier/stream":                        func(*http.Request) any { return refuse(404, "no events here") },
		"POST /volume_snapshots/capture_instance/{_}": func(*http.Request) any { return refuse(400, "a volume's point") },
	} {
		method, path, _ := strings.Cut(pattern, " ")
		mux.HandleFunc(method+" /v2/zone/ac1"+path, func(w http.ResponseWriter, r *http.Request) {
			write(w, f.answer(r, do))
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		write(w, refuse(404, "there is nothing at %s", r.URL.Path))
	})
	return mux
}

// answer calls do under the lock, which a broken-off request lets go too.
func (f *fake) answer(r *http.Request, do func(*http.Request) any) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.page {
		return proxyPage{}
	}
	return do(r)
}

// proxyPage is what stands between a client and a server that is down.
type proxyPage struct{}

// stream is an answer that is no JSON. cut ends it early.
type stream struct {
	b    []byte
	cut  bool
	kind string // Content-Type; may be empty
}

func write(w http.ResponseWriter, answer any) {
	switch a := answer.(type) {
	case nil:
		w.WriteHeader(http.StatusNoContent)
	case proxyPage:
		w.WriteHeader(http.StatusBadGateway)
		_, _ = io.WriteString(w, "<html>Bad Gateway</html>")
	case stream:
		w.Header().Set("Content-Length", strconv.Itoa(len(a.b)))
		if a.kind != "" {
			w.Header().Set("Content-Type", a.kind)
		}
		if a.cut {
			_, _ = w.Write(a.b[:len(a.b)/2])
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(a.b)
	case *client.Error:
		w.WriteHeader(a.Status)
		_ = json.NewEncoder(w).Encode(map[string]string{"code": "1", "message": a.Message, "detail": "", "request_id": "req-1"})
	default:
		_ = json.NewEncoder(w).Encode(answer)
	}
}

func refuse(status int, format string, args ...any) *client.Error {
	return &client.Error{Status: status, Message: "Kind, " + fmt.Sprintf(format, args...)}
}

func decode(r *http.Request) map[string]any {
	var body map[string]any
	_ = json.NewDecoder(r.Body).Decode(&body)
	return body
}

func text(body map[string]any, key string) string { s, _ := body[key].(string); return s }

func ids(body map[string]any, key string) []string {
	var out []string
	list, _ := body[key].([]any)
	for _, v := range list {
		out = append(out, fmt.Sprint(v))
	}
	return out
}

// start makes a job whose end does what end says.
func (f *fake) start(action, name string, resources []string) *client.Job {
	j := &client.Job{
		ID: fmt.Sprintf("00000000-0000-0000-0000-%012d", len(f.jobs)+1), Action: action, Status: client.JobPending,
		CreateTime: f.now(), ResourceIDs: resources, Zone: "ac1", TotalBytes: 4 << 20,
	}
	f.fate[j.ID] = name
	f.jobs = slices.Insert(f.jobs, 0, j)
	return j
}

func (f *fake) getJob(r *http.Request) any {
	j := f.job(r.PathValue("id"))
	if j == nil {
		return refuse(404, "job %s does not exist", r.PathValue("id"))
	}
	f.looks[j.ID]++
	if j.Ended() || strings.HasPrefix(f.fate[j.ID], "endless") && f.looks[j.ID] > 1 {
		return j
	}
	switch {
	case f.looks[j.ID] == 1:
		j.Status, j.BeginTime, j.DoneBytes, j.Progress = client.JobWorking, f.now(), 1<<20, 0.25
	case strings.HasPrefix(f.fate[j.ID], "broken"):
		f.end(j, client.JobFailed, "volume vol-00000001 vanished; look for it")
	default:
		j.DoneBytes, j.Progress = j.TotalBytes, 1
		f.end(j, client.JobSuccessful, "")
	}
	return j
}

func (f *fake) end(j *client.Job, status, info string) {
	j.Status, j.Info, j.FinishedTime = status, info, f.now()
	if status == client.JobFailed {
		j.Error = &client.JobError{Code: "5000", Message: info}
	}
	if j.Action == "ScrubRepository" {
		j.Extra = `{"points":2,"blobs":3,"chunks":40,"nodes":5,"bytes_read":4096,"damaged_snapshots":[],"damage":[],"damage_cut":0}`
		if f.damaged {
			j.Status, j.Info = client.JobFailed, "1 blob is damaged; restore it from a copy"
			j.Error = &client.JobError{Code: "5000", Message: j.Info}
			j.Extra = `{"points":2,"blobs":3,"chunks":40,"nodes":5,"bytes_read":4096,"damaged_snapshots":["ss-00000001"],"damage":[{"blob":"data/ab","what":"the bytes do not match their hash","snapshot_id":"ss-00000001","offset":65536,"length":65536}],"damage_cut":2}`
		}
	}
}

func (f *fake) job(id string) *client.Job {
	for _, j := range f.jobs {
		if j.ID == id {
			return j
		}
	}
	return nil
}

func (f *fake) cancelJob(r *http.Request) any {
	j := f.job(r.PathValue("id"))
	switch {
	case j == nil:
		return refuse(404, "job %s does not exist", r.PathValue("id"))
	case j.Ended():
		return refuse(409, "job %s has ended", j.ID)
	}
	f.fate[j.ID] = "broken" // ends as failed at a later look
	return j
}

// page cuts rows by offset and limit, at most 100.
func page[T any](r *http.Request, rows []T, standard int) []T {
	offset, limit := 0, standard
	_, _ = fmt.Sscan(r.FormValue("offset"), &offset)
	_, _ = fmt.Sscan(r.FormValue("limit"), &limit)
	offset = min(offset, len(rows))
	return rows[offset:min(offset+min(limit, 100), len(rows))]
}

// chosen applies a filter of comma-separated values.
func chosen(r *http.Request, key, value string) bool {
	want := r.FormValue(key)
	return want == "" || slices.Contains(strings.Split(want, ","), value)
}

func found(r *http.Request, words ...string) bool {
	want := strings.ToLower(r.FormValue("search_word"))
	return slices.ContainsFunc(words, func(s string) bool { return strings.Contains(strings.ToLower(s), want) })
}

func (f *fake) listJobs(r *http.Request) any {
	rows := []*client.Job{}
	for _, j := range f.jobs {
		resource := r.FormValue("resource_id")
		if chosen(r, "status", j.Status) && (resource == "" || slices.Contains(j.ResourceIDs, resource)) {
			rows = append(rows, j)
		}
	}
	return map[string]any{"jobs": page(r, rows, 20), "total_count": len(rows)}
}

func (f *fake) scrub(*http.Request) any { return f.start("ScrubRepository", "", nil) }

func (f *fake) prune(r *http.Request) any {
	j := f.start("PruneRepository", "", nil)
	dry := r.FormValue("dry_run") == "1"
	j.Extra = fmt.Sprintf(`{"as_of":"2026-11-23T08:00:00Z","dry_run":%v,"ceased_points":%s,"stored_bytes":5000,"freed_bytes":2048,"freed_packs":2,`+
		`"leaving_bytes":0,"waste_bytes":700,"copied_bytes":300,"copied_packs":1,"untouched_why":["ab: it is damaged"]}`, dry, strconv.Itoa(len(r.FormValue("empty_bin"))))
	return j
}

func (f *fake) lease(r *http.Request) any {
	var in struct{ Resources []string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return refuse(400, "%v", err)
	}
	for _, s := range f.snapshots {
		if slices.Contains(in.Resources, s.ID) {
			s.Status = "available"
		}
	}
	return f.start("LeaseResources", "", in.Resources)
}

// steer changes how the fake behaves.
func (f *fake) steer(what string) {
	switch what {
	case "damage":
		f.damaged = true
	case "cut":
		f.cut = true
	case "many":
		for range 250 {
			f.addSnapshot("vol-00000001", "many", false)
		}
	case "page": // a server that is none of ours
		f.page = true
	default:
		panic("the fake does not know " + what)
	}
}

func (f *fake) export(r *http.Request) any {
	id := r.PathValue("id")
	b, ok := f.content[id]
	if !ok {
		return refuse(404, "%s does not exist", id)
	}
	if r.FormValue("salvage") == "1" {
		return f.salvage(id, b)
	}
	if r.FormValue("format") == "qcow2" {
		b = slices.Concat([]byte("QFI\xfb"), b)
	}
	return stream{b: b, cut: f.cut}
}

// salvage has lost three of the last seven bytes, if there is damage.
func (f *fake) salvage(id string, b []byte) any {
	report := client.SalvageReport{Snapshot: id, SizeBytes: int64(len(b)), BadRanges: []client.BadRange{}}
	if f.damaged {
		b = slices.Clone(b)
		at := len(b) - 7
		b[at], b[at+1], b[at+4] = 0, 0, 0
		report.BadBytes = 3
		report.BadRanges = []client.BadRange{
			{Offset: int64(at), Length: 2, Cause: client.Damaged}, {Offset: int64(at + 4), Length: 1, Cause: client.Unreadable},
		}
	}
	var body bytes.Buffer
	parts := multipart.NewWriter(&body)
	data, _ := parts.CreatePart(textproto.MIMEHeader{"Content-Length": {strconv.Itoa(len(b))}})
	_, _ = data.Write(b)
	list, _ := parts.CreatePart(nil)
	_ = json.NewEncoder(list).Encode(report)
	_ = parts.Close()
	return stream{b: body.Bytes(), cut: f.cut, kind: "multipart/mixed; boundary=" + parts.Boundary()}
}

func (f *fake) importVolume(r *http.Request) any {
	b, err := contentOf(r)
	if err != nil || strconv.Itoa(len(b)) != r.FormValue("size_bytes") {
		panic(http.ErrAbortHandler)
	}
	v := f.addVolume(r.FormValue("volume_name"), int64(len(b)))
	f.content[v.ID] = b
	j := f.start("ImportVolume", "", []string{v.ID})
	f.end(j, client.JobSuccessful, "")
	return j
}

// contentOf is the content of an import, raw or as multipart/byteranges.
func contentOf(r *http.Request) ([]byte, error) {
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/byteranges" {
		return io.ReadAll(r.Body)
	}
	size, err := strconv.Atoi(r.FormValue("size_bytes"))
	if err != nil {
		return nil, err
	}
	content := make([]byte, size)
	parts := multipart.NewReader(r.Body, params["boundary"])
	for {
		part, err := parts.NextRawPart()
		if err == io.EOF {
			return content, nil
		}
		if err != nil {
			return nil, err
		}
		var first, last int
		if _, err := fmt.Sscanf(part.Header.Get("Content-Range"), "bytes %d-%d/", &first, &last); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(part, content[first:last+1]); err != nil {
			return nil, err
		}
	}
}

func sparse(n int) []byte { return append(bytes.Repeat([]byte{0}, n), "the end"...) }
