package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets scripts run the test binary itself as cairn.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"cairn": main})
}

// TestScripts runs testdata/script/*.txtar. $D is a folder to be served.
// Beside testscript's commands they have:
//
//	exits CODE cairn …   run it, want that exit code, and no secret in its output
//	json KEY VALUE       the one document of stdout has VALUE at KEY (a.b.0, a.len)
//	setjson VAR KEY      set VAR to what stdout has at KEY
//	ready                wait until a server answers on $D
//	quiet                the output of the last background command has no secret
//	foreign              $D's lock record becomes another host's
//	paper FILE           FILE gets what somebody types who reads $PAPER: group 1,
//	                     group 2 with a mistake and group 3, the rest
//	paper -whole FILE    FILE gets all of $PAPER, in small letters
//
// Secrets are the lines of *.pass and what is in *.key, in $WORK and $D.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			// Socket paths are short by law of the kernel; the script's folder
			// may not be.
			folder, err := os.MkdirTemp("", "cairn")
			if err != nil {
				return err
			}
			env.Defer(func() {
				endMachines(folder)
				_ = os.RemoveAll(folder)
			})
			env.Setenv("D", filepath.Join(folder, "d"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   exits,
			"json":    wantJSON,
			"setjson": func(ts *testscript.TestScript, _ bool, args []string) { ts.Setenv(args[0], field(ts, args[1])) },
			"ready":   ready,
			"quiet":   func(ts *testscript.TestScript, _ bool, _ []string) { noSecrets(ts) },
			"foreign": foreign,
			"paper":   paper,
		},
	})
}

// endMachines kills what a script that failed left running: machines outlive
// their server.
func endMachines(folder string) {
	files, err := filepath.Glob(filepath.Join(folder, "d", "volumes", "machines", "*", "pid"))
	if err != nil {
		return // the pattern is right
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it ends
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			continue
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.Contains(string(line), "guest="+filepath.Base(filepath.Dir(f))) {
			_ = syscall.Kill(pid, syscall.SIGKILL) // or it has ended
		}
	}
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARG...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if err != nil {
		if _, scanErr := fmt.Sscanf(err.Error(), "exit status %d", &got); scanErr != nil {
			ts.Fatalf("%v", err)
		}
	}
	noSecrets(ts)
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

func noSecrets(ts *testscript.TestScript) {
	for _, dir := range []string{ts.Getenv("WORK"), ts.Getenv("D")} {
		for _, pattern := range []string{"*.pass", "*.key"} {
			files, err := filepath.Glob(filepath.Join(dir, pattern))
			ts.Check(err)
			for _, f := range files {
				b, err := os.ReadFile(f)
				ts.Check(err)
				secret := strings.TrimSpace(string(b))
				if parts := strings.Split(secret, "-"); pattern == "*.key" {
					secret = parts[len(parts)-2]
				}
				if strings.Contains(ts.ReadFile("stdout")+ts.ReadFile("stderr"), secret) {
					ts.Fatalf("the output holds the secret of %s", f)
				}
			}
		}
	}
}

// field is the value at a key of the one document on stdout.
func field(ts *testscript.TestScript, path string) string {
	d := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	d.UseNumber()
	var v any
	ts.Check(d.Decode(&v))
	if d.More() {
		ts.Fatalf("stdout holds more than one document")
	}
	for key := range strings.SplitSeq(path, ".") {
		switch o := v.(type) {
		case map[string]any:
			v = o[key]
		case []any:
			if key == "len" {
				return strconv.Itoa(len(o))
			}
			i, err := strconv.Atoi(key)
			ts.Check(err)
			if i >= len(o) {
				ts.Fatalf("%s: the list has %d items", path, len(o))
			}
			v = o[i]
		default:
			ts.Fatalf("%s: %v has no %s", path, v, key)
		}
	}
	return fmt.Sprint(v)
}

func wantJSON(ts *testscript.TestScript, _ bool, args []string) {
	if got := field(ts, args[0]); got != args[1] {
		ts.Fatalf("%s is %q, want %q", args[0], got, args[1])
	}
}

func ready(ts *testscript.TestScript, _ bool, _ []string) {
	for range 6000 {
		if ts.Exec("cairn", "volume", "list", "--server", "unix://"+ts.Getenv("D")+"/cairn.sock") == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("no server answers")
}

func foreign(ts *testscript.TestScript, _ bool, _ []string) {
	path := filepath.Join(ts.Getenv("D"), ownerName)
	b, err := json.Marshal(owner{Host: "elsewhere", Machine: "m", Boot: "b", PID: 4711, Since: time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)})
	ts.Check(err)
	ts.Check(os.WriteFile(path, b, 0o600))
}

func paper(ts *testscript.TestScript, _ bool, args []string) {
	if args[0] == "-whole" {
		ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(strings.ToLower(ts.Getenv("PAPER"))), 0o600))
		return
	}
	groups := strings.Fields(ts.Getenv("PAPER"))[1:]
	wrong := []byte(strings.ToLower(groups[1]))
	wrong[2], wrong[3] = wrong[3], wrong[2]
	if wrong[2] == wrong[3] {
		wrong[0] = 'u'
	}
	lines := []string{"", groups[0], string(wrong) + " " + groups[2], strings.ToLower(groups[1]), strings.Join(groups[2:], "-"), ""}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Join(lines, "\n")), 0o600))
}
