package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"cairn/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// jobServer has one job whose state the test moves, with or without events.
type jobServer struct {
	mu      sync.Mutex
	status  string
	changed chan struct{}

	noEvents  bool         // the stream answers 404
	gets      atomic.Int64 // GET /job/…
	getFails  atomic.Int64 // that many GETs break before one works again
	onGet     func(n int64, s *jobServer)
	streaming atomic.Int64
}

func newJobServer() *jobServer {
	return &jobServer{status: client.JobPending, changed: make(chan struct{})}
}

func (s *jobServer) move(status string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status = status
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *jobServer) state() (client.Job, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return client.Job{ID: "j1", Action: "CreateSnapshots", Status: s.status, Info: "the reason"}, s.changed
}

func (s *jobServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "/job/j1") {
		n := s.gets.Add(1)
		if n > 1 && s.getFails.Add(-1) >= 0 {
			panic(http.ErrAbortHandler)
		}
		if s.onGet != nil {
			s.onGet(n, s)
		}
		j, _ := s.state()
		_ = json.NewEncoder(w).Encode(j)
		return
	}
	if s.noEvents || !strings.HasSuffix(r.URL.Path, "/notifier/stream") {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"code":"2100","message":"NotFound, no such job or path"}`)
		return
	}
	s.streaming.Add(1)
	_, changed := s.state()
	w.Header().Set("Content-Type", "text/event-stream")
	_, _ = io.WriteString(w, "event:hb\ndata:\n\n")
	w.(http.Flusher).Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		}
		var j client.Job
		j, changed = s.state()
		b, _ := json.Marshal(j)
		_, _ = fmt.Fprintf(w, "event:message\ndata:{\"job_id\":\"other\",\"status\":\"failed\"}\n\nevent: message\ndata: %s\n\n", b)
		w.(http.Flusher).Flush()
		if j.Ended() {
			return
		}
	}
}

func TestWaitJob(t *testing.T) {
	t.Run("by events", func(t *testing.T) {
		s := newJobServer()
		s.onGet = func(n int64, s *jobServer) {
			if n == 2 { // the look after the stream was opened: from now on events tell
				go func() { s.move(client.JobWorking); s.move(client.JobSuccessful) }()
			}
		}
		var seen []string
		j, err := dial(t, s).WaitJob(t.Context(), "j1", func(j client.Job) { seen = append(seen, j.Status) })
		if err != nil || j.Status != client.JobSuccessful || j.Err() != nil || seen[len(seen)-1] != client.JobSuccessful {
			t.Fatalf("%+v, %v, saw %v", j, err, seen)
		}
	})
	t.Run("without events", func(t *testing.T) {
		s := newJobServer()
		s.noEvents = true
		s.onGet = func(n int64, s *jobServer) {
			if n == 3 {
				s.move(client.JobFailed)
			}
		}
		j, err := dial(t, s).WaitJob(t.Context(), "j1", nil)
		if err != nil || j.Status != client.JobFailed {
			t.Fatalf("%+v, %v", j, err)
		}
		var failed *client.FailedJob
		if !errors.As(j.Err(), &failed) || !strings.Contains(j.Err().Error(), "the reason") {
			t.Error(j.Err())
		}
	})
	t.Run("ended already", func(t *testing.T) {
		s := newJobServer()
		s.move(client.JobSuccessful)
		if j, err := dial(t, s).WaitJob(t.Context(), "j1", nil); err != nil || !j.Ended() || s.streaming.Load() != 0 {
			t.Fatalf("%+v, %v", j, err)
		}
	})
	t.Run("over a restart of the server", func(t *testing.T) {
		s := newJobServer()
		s.noEvents = true
		s.getFails.Store(2)
		s.onGet = func(n int64, s *jobServer) {
			if n > 1 {
				s.move(client.JobSuccessful)
			}
		}
		if j, err := dial(t, s).WaitJob(t.Context(), "j1", nil); err != nil || j.Status != client.JobSuccessful {
			t.Fatalf("%+v, %v", j, err)
		}
	})
	t.Run("unknown job", func(t *testing.T) {
		_, err := dial(t, newJobServer()).WaitJob(t.Context(), "j2", nil)
		if !client.IsStatus(err, http.StatusNotFound) {
			t.Fatal(err)
		}
	})
	t.Run("ended by the caller", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		j, err := dial(t, newJobServer()).WaitJob(ctx, "j1", func(client.Job) { cancel() })
		if !errors.Is(err, context.Canceled) || j.ID != "j1" {
			t.Fatalf("%+v, %v", j, err)
		}
	})
}

func TestScrubReport(t *testing.T) {
	r, ok := client.Job{Extra: `{"points":2,"damage":[{"blob":"b","what":"w"}]}`}.ScrubReport()
	if !ok || r.Points != 2 || r.Clean() || r.Damage[0].What != "w" {
		t.Errorf("%+v, %v", r, ok)
	}
	for _, extra := range []string{"", "text", "{", `[1]`} {
		if _, ok := (client.Job{Extra: extra}).ScrubReport(); ok {
			t.Errorf("%q passes as a report", extra)
		}
	}
}

// volumeServer has one volume of which each look finds less missing.
type volumeServer struct {
	missing  int64
	onDemand client.Flag
	looks    int
	// fail answers a look instead; nil: none does.
	fail func(look int, w http.ResponseWriter) bool
}

func (s *volumeServer) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	s.looks++
	if s.fail != nil && s.fail(s.looks, w) {
		return
	}
	_ = json.NewEncoder(w).Encode(client.VolumePage{Volumes: []client.Volume{{ID: "vol-1", MissingBytes: s.missing, OnDemand: s.onDemand}}, TotalCount: 1})
	s.missing = max(s.missing-10, 0)
}

func TestWaitFilled(t *testing.T) {
	away := func(look int, _ http.ResponseWriter) bool {
		if look == 2 || look == 3 {
			panic(http.ErrAbortHandler)
		}
		return false
	}
	var seen []int64
	v, err := dial(t, &volumeServer{missing: 20, fail: away}).WaitFilled(t.Context(), "vol-1", func(v client.Volume) { seen = append(seen, v.MissingBytes) })
	if err != nil || v.ID != "vol-1" || !slices.Equal(seen, []int64{20, 10, 0}) {
		t.Errorf("%+v, %v, saw %v", v, err, seen)
	}
	if v, err := dial(t, &volumeServer{}).WaitFilled(t.Context(), "vol-1", nil); err != nil || v.ID != "vol-1" {
		t.Errorf("nothing missing: %+v, %v", v, err)
	}
	gone := func(look int, w http.ResponseWriter) bool {
		if look > 1 {
			w.WriteHeader(http.StatusNotFound)
		}
		return look > 1
	}
	if v, err := dial(t, &volumeServer{missing: 20, fail: gone}).WaitFilled(t.Context(), "vol-1", nil); !client.IsStatus(err, http.StatusNotFound) || v.ID != "vol-1" {
		t.Errorf("deleted meanwhile: %+v, %v", v, err)
	}
	if v, err := dial(t, &volumeServer{missing: 20, onDemand: true}).WaitFilled(t.Context(), "vol-1", nil); !errors.Is(err, client.ErrOnDemand) || v.ID != "vol-1" {
		t.Errorf("on demand: %+v, %v", v, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	stop := func(client.Volume) { cancel() }
	if v, err := dial(t, &volumeServer{missing: 1 << 40}).WaitFilled(ctx, "vol-1", stop); !errors.Is(err, context.Canceled) || v.MissingBytes != 1<<40 {
		t.Errorf("stopped: %+v, %v", v, err)
	}
}
