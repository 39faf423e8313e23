package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"cairn/internal/cli"
)

// TestMain lets scripts run the test binary itself as cairn.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"cairn": func() {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		os.Exit(cli.Execute(ctx, cli.New(cli.Config{Version: "v0.0.0-test"}), os.Args[1:]))
	}})
}

// TestScripts runs testdata/script/*.txtar, each against a fake server of its
// own. Beside testscript's commands they have:
//
//	exits CODE cairn …  run it and want that exit code
//	json KEY VALUE      the one document of stdout has VALUE at KEY (a.b.0, a.len)
//	fake WHAT           steer the server, see fake.steer and steerFake
//	holes FILE          FILE takes less room than its size
//	qcow2 RAW FILE      write RAW as a qcow2 FILE
//	spoil FILE AT BYTE  change one byte of FILE
//	running FILE        lock FILE until the script ends, as QEMU does to write
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setupFake,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
			"json":  wantJSON,
			"fake":  steerFake,
			"holes": wantHoles,
			"qcow2": makeQcow2,
			"spoil": spoil,

			"running": lockAsQEMU,
		},
	})
}

func setupFake(env *testscript.Env) error {
	f := newFake()
	tcp := httptest.NewServer(f.handler(false))
	env.Defer(tcp.Close)
	// Socket paths are short by law of the kernel; the script's folder may not be.
	folder, err := os.MkdirTemp("", "cairn")
	if err != nil {
		return err
	}
	env.Defer(func() { _ = os.RemoveAll(folder) })
	socket := filepath.Join(folder, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	unix := &httptest.Server{Listener: l, Config: &http.Server{Handler: f.handler(true)}}
	unix.Start()
	env.Defer(unix.Close)
	env.Values["fake"] = f
	env.Setenv("CAIRN_SERVER", tcp.URL)
	env.Setenv("SOCKET", "unix://"+socket)
	env.Setenv("TERM", "xterm")
	return nil
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if err != nil {
		if _, scanErr := fmt.Sscanf(err.Error(), "exit status %d", &got); scanErr != nil {
			ts.Fatalf("%v", err)
		}
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
	if want != 0 {
		stderr := strings.TrimSpace(ts.ReadFile("stderr"))
		last := stderr[strings.LastIndex(stderr, "\n")+1:]
		if _, after, asked := strings.Cut(last, "[y/N] "); asked {
			last = after // on a real screen the answer ended the question's line
		}
		if !strings.HasPrefix(last, "cairn: ") {
			ts.Fatalf("stderr ends in %q, not in one sentence", last)
		}
	}
}

func wantJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: json KEY VALUE")
	}
	d := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	d.UseNumber()
	var v any
	ts.Check(d.Decode(&v))
	if d.More() {
		ts.Fatalf("stdout holds more than one document")
	}
	for _, key := range strings.Split(args[0], ".") {
		switch o := v.(type) {
		case map[string]any:
			v = o[key]
		case []any:
			if key == "len" {
				v = len(o)
				continue
			}
			i, err := strconv.Atoi(key)
			ts.Check(err)
			if i >= len(o) {
				ts.Fatalf("%s: the list has %d items", args[0], len(o))
			}
			v = o[i]
		default:
			ts.Fatalf("%s: %v has no %s", args[0], v, key)
		}
	}
	if got := fmt.Sprint(v); got != args[1] {
		ts.Fatalf("%s is %q, want %q", args[0], got, args[1])
	}
}

// fake looked JOB waits until somebody has looked at the job twice, so that
// who waits for it is surely waiting; fake WHAT steers.
func steerFake(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: fake WHAT")
	}
	f := ts.Value("fake").(*fake)
	if args[0] != "looked" {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.steer(args[0])
		return
	}
	for range 6000 {
		f.mu.Lock()
		looks := f.looks[args[1]]
		f.mu.Unlock()
		if looks > 1 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("nobody waits for job %s", args[1])
}

func wantHoles(ts *testscript.TestScript, _ bool, args []string) {
	st, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used >= st.Size() {
		ts.Fatalf("%s uses %d bytes of %d", args[0], used, st.Size())
	}
}

// Every command can be run without a server to explain itself, and says how.
func TestEveryCommandHasHelp(t *testing.T) {
	root := cli.New(cli.Config{})
	var paths [][]string
	for _, group := range root.Commands() {
		paths = append(paths, []string{group.Name()})
		for _, c := range group.Commands() {
			paths = append(paths, []string{group.Name(), c.Name()})
		}
	}
	if len(paths) < 25 {
		t.Fatalf("only %d commands", len(paths))
	}
	for _, path := range paths {
		var out, stderr bytes.Buffer
		cfg := cli.Config{In: strings.NewReader(""), Out: &out, Err: &stderr, Getenv: func(string) string { return "" }}
		if code := cli.Execute(t.Context(), cli.New(cfg), append(path, "--help")); code != 0 || out.Len() < 50 || stderr.Len() > 0 {
			t.Errorf("%v --help: exit %d, %q, %q", path, code, &out, &stderr)
		}
	}
}

// The tree of package main: a command that is not ours, with errors of its own.
func TestForeignCommandsKeepTheirErrors(t *testing.T) {
	var stderr bytes.Buffer
	root := cli.New(cli.Config{Err: &stderr})
	root.AddCommand(failing())
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // a stop that was asked for does not hide the failure
	if code := cli.Execute(ctx, root, []string{"serve"}); code != 5 || stderr.String() != "cairn: the address is taken\n" {
		t.Errorf("exit %d, %q", code, &stderr)
	}
}
