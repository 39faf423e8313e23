package httpapi_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/internal/errs"
	"cairn/internal/httpapi"
	"cairn/internal/service"
)

const zone = "/v2/zone/ac1"

var (
	here = service.Origin{Zone: "ac1"}
	yes  = true
	no   = false
)

func ptr[T any](v T) *T { return &v }

// row is one sentence of API.md, as a request and what must come of it.
type row struct {
	says    string
	method  string
	target  string // below the zone
	headers string
	body    string
	status  int
	code    string // of an error
	call    *made  // what must reach the service; nil: nothing
	has     string // what the answer must hold
}

// bad is a row that must be refused with 400 before the service hears of it.
func bad(says, method, target, body string) row {
	return row{says: says, method: method, target: target, body: body, status: 400, code: "1100"}
}

func (r row) run(t *testing.T, f *fake, s *server, check func(method, target string, a answer)) {
	t.Helper()
	target := r.target
	if !strings.HasPrefix(target, "//") {
		target = zone + target
	} else {
		target = target[1:]
	}
	f.take()
	a := s.do(t, r.method, target, r.headers, r.body)
	if a.StatusCode != r.status {
		t.Errorf("status %d, want %d\n%s", a.StatusCode, r.status, a.body)
	}
	var want []made
	if r.call != nil {
		want = []made{*r.call}
	}
	if diff := cmp.Diff(want, f.take()); diff != "" {
		t.Errorf("the service was called otherwise (-want +got):\n%s", diff)
	}
	if !strings.Contains(string(a.body), r.has) {
		t.Errorf("the answer lacks %s:\n%s", r.has, a.body)
	}
	if id := a.Header.Get("X-Request-Id"); !validUUID(id) {
		t.Errorf("X-Request-Id is %q", id)
	}
	if a.StatusCode >= 300 {
		checkError(t, a, r.code)
	}
	check(r.method, target, a)
}

func checkError(t *testing.T, a answer, code string) {
	t.Helper()
	o := a.object(t)
	if len(o) != 4 || o["code"] != code || o["request_id"] != a.Header.Get("X-Request-Id") {
		t.Errorf("want code %s and request_id %s:\n%s", code, a.Header.Get("X-Request-Id"), a.body)
	}
	message, _ := o["message"].(string)
	if kind, rest, ok := strings.Cut(message, ", "); !ok || kind == "" || rest == "" || strings.Contains(kind, " ") {
		t.Errorf("message is not `<Kind>, <sentence>`: %q", message)
	}
	if _, ok := o["detail"].(string); !ok {
		t.Errorf("detail is not a string: %s", a.body)
	}
	if a.Header.Get("Content-Type") != "application/json" {
		t.Errorf("Content-Type %q", a.Header.Get("Content-Type"))
	}
}

func TestWire(t *testing.T) {
	f := newFake()
	s := serve(t, f, nil)
	doc := document(t, s)
	for _, table := range [][]row{listRows(), createRows(), deleteRows(), applyRows(), cloneRows(), renameRows(), serveRows(), volumeRows(), instanceRows(), imageRows(), jobRows(), routeRows()} {
		for _, r := range table {
			t.Run(r.says, func(t *testing.T) {
				r.run(t, f, s, func(method, target string, a answer) { checkDocumented(t, doc, method, target, a) })
			})
		}
	}
}

func TestAllowAndOptions(t *testing.T) {
	f := newFake()
	s := serve(t, f, nil)
	for target, want := range map[string]string{
		"/volume_snapshots":       "GET, HEAD, POST, PUT, DELETE, OPTIONS",
		"/snapshots/ss-A":         "PUT, DELETE, OPTIONS",
		"/volume_snapshots/apply": "POST, PUT, DELETE, OPTIONS", // apply could be an id
		"/unfinished_jobs":        "GET, HEAD, OPTIONS",
	} {
		for method, status := range map[string]int{"PATCH": 405, "OPTIONS": 204} {
			a := s.do(t, method, zone+target, "", "")
			if a.StatusCode != status || a.Header.Get("Allow") != want {
				t.Errorf("%s %s: %d, Allow %q; want %d, %q", method, target, a.StatusCode, a.Header.Get("Allow"), status, want)
			}
		}
	}
	if a := s.do(t, "OPTIONS", "/nothing", "", ""); a.StatusCode != http.StatusNotFound {
		t.Errorf("OPTIONS of nothing: %d", a.StatusCode)
	}
	if calls := f.take(); calls != nil {
		t.Errorf("the service was called: %v", calls)
	}
}

func TestErrorsOfTheService(t *testing.T) {
	f := newFake()
	s := serve(t, f, nil)
	doc := document(t, s)
	secret := errs.New(errs.Internal, "")
	for _, c := range []struct {
		err     error
		status  int
		code    string
		message string
	}{
		{errs.New(errs.Invalid, "snapshot_name is empty; name the point"), 400, "1100", "Invalid, snapshot_name is empty; name the point"},
		{errs.New(errs.Denied, "not yours"), 403, "1400", "Denied, not yours"},
		{errs.New(errs.NotFound, "snapshot ss-A does not exist"), 404, "2100", "NotFound, snapshot ss-A does not exist"},
		{errs.New(errs.Exists, "is there"), 409, "2110", "Exists, is there"},
		{errs.New(errs.Conflict, "is suspended"), 409, "1400", "Conflict, is suspended"},
		{errs.New(errs.Busy, "vol-A is creating; please try later"), 409, "1400", "Busy, vol-A is creating; please try later"},
		{errs.New(errs.Depends, "has children"), 409, "5400", "Depends, has children"},
		{errs.New(errs.TooLarge, "too large"), 413, "1100", "TooLarge, too large"},
		{errs.New(errs.Quota, "too many"), 429, "2500", "Quota, too many"},
		{errs.New(errs.Unavailable, "no answer"), 503, "5100", "Unavailable, no answer"},
		{errs.New(errs.Full, "no space"), 503, "5100", "Full, no space"},
		{errs.New(errs.Corrupt, "bytes are wrong"), 500, "5000", "Corrupt, bytes are wrong"},
		{errs.Wrap(errs.Internal, http.ErrBodyNotAllowed, ""), 500, "5000", "Internal, " + errs.Message(secret)},
		{http.ErrBodyNotAllowed, 500, "5000", "Internal, " + errs.Message(secret)},
	} {
		f.err = c.err
		a := s.do(t, "POST", zone+"/volume_snapshots", "", `{"resources":["vol-A"],"snapshot_name":"n"}`)
		if a.StatusCode != c.status || a.object(t)["message"] != c.message {
			t.Errorf("%v: %d %s", c.err, a.StatusCode, a.body)
		}
		checkError(t, a, c.code)
		checkDocumented(t, doc, "POST", zone+"/volume_snapshots", a)
		if retry := a.Header.Get("Retry-After"); (retry != "") != (c.status == 503) {
			t.Errorf("%v: Retry-After %q", c.err, retry)
		}
		if !strings.Contains(s.log.String(), a.Header.Get("X-Request-Id")) {
			t.Errorf("%v: the log lacks the request", c.err)
		}
	}
	if !strings.Contains(s.log.String(), http.ErrBodyNotAllowed.Error()) {
		t.Error("the log lacks the cause")
	}
}

func TestRequestIDReachesTheService(t *testing.T) {
	f := newFake()
	s := serve(t, f, nil)
	a := s.do(t, "POST", zone+"/repository/scrub", "X-Request-Id: mine\r\n", "")
	if id := a.Header.Get("X-Request-Id"); len(f.ids) != 1 || f.ids[0] != id || !validUUID(id) {
		t.Errorf("the service got %v, the client %q", f.ids, id)
	}
	if log := s.log.String(); !strings.Contains(log, `"job_id":"`+jobID) || !strings.Contains(log, "ss-AAAAAAAA") {
		t.Errorf("the log names neither job nor snapshot:\n%s", log)
	}
}

func TestPanicIsAnswered(t *testing.T) {
	f := newFake()
	f.panics = "oops"
	s := serve(t, f, nil)
	a := s.do(t, "GET", zone+"/volumes", "", "")
	checkError(t, a, "5000")
	if a.StatusCode != http.StatusInternalServerError || strings.Contains(string(a.body), "oops") {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	if log := s.log.String(); !strings.Contains(log, "oops") || !strings.Contains(log, "fake_test.go") {
		t.Errorf("the log lacks the panic and its stack:\n%s", log)
	}
	f.panics = nil
	if a := s.do(t, "GET", zone+"/volumes", "", ""); a.StatusCode != http.StatusOK {
		t.Errorf("afterwards: %d", a.StatusCode)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for _, cfg := range []httpapi.Config{{}, {Service: newFake()}, {Zones: []string{"ac1"}}, {Service: newFake(), Zones: []string{""}}} {
		if _, err := httpapi.New(cfg); err == nil {
			t.Errorf("New took %+v", cfg)
		}
	}
}
