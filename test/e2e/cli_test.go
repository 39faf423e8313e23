package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/test/e2e/harness"
)

// toolLimit bounds one call of the command line or of a QEMU tool.
const toolLimit = 2 * time.Minute

// console runs the command line in a folder against a server.
type console struct {
	bin, dir, server string
}

// output is what one command gave.
type output struct {
	call, out, err string
	code           int
}

func (c console) run(t harness.TB, args ...string) output {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), toolLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.bin, args...)
	cmd.Dir, cmd.Env = c.dir, harness.CleanEnv("CAIRN_SERVER="+c.server)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("cairn %s: %v", strings.Join(args, " "), err)
	}
	return output{"cairn " + strings.Join(args, " "), stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// ok runs a command that must succeed.
func (c console) ok(t harness.TB, args ...string) output {
	t.Helper()
	o := c.run(t, args...)
	if o.code != 0 {
		t.Fatalf("%s: exit %d\nstdout: %s\nstderr: %s", o.call, o.code, o.out, o.err)
	}
	return o
}

// json runs a command with -o json and decodes the one document of stdout.
func (c console) json(t *testing.T, v any, args ...string) {
	t.Helper()
	c.ok(t, append(args, "-o", "json")...).decode(t, v)
}

func (o output) decode(t *testing.T, v any) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(o.out))
	if err := dec.Decode(v); err != nil {
		t.Fatalf("%s: stdout is not JSON: %v\n%s", o.call, err, o.out)
	}
	if dec.More() {
		t.Fatalf("%s: stdout holds more than one document:\n%s", o.call, o.out)
	}
}

// fails runs a command that must end with a code, a sentence on stderr, and
// nothing on stdout.
func (c console) fails(t *testing.T, code int, says string, args ...string) {
	t.Helper()
	o := c.run(t, args...)
	if o.code != code || o.out != "" || !strings.Contains(o.err, says) {
		t.Errorf("%s: exit %d, stdout %q, stderr %q; want exit %d, nothing, and a sentence with %q",
			o.call, o.code, o.out, o.err, code, says)
	}
}

// TestCommandLine walks through the commands as a person or a script would.
func TestCommandLine(t *testing.T) {
	srv := serve(t)
	dir := t.TempDir()
	local := console{srv.Bin, dir, "unix://" + srv.Socket()}
	far := console{srv.Bin, dir, srv.BaseURL()}
	c := &cliTour{t: t, srv: srv, local: local, far: far, dir: dir}

	c.img = harness.NewImage(2*mib + 512)
	c.img.Apply(harness.Edit{Kind: harness.WriteNoise, Off: 100_000, Len: 700_000, Seed: 1})
	c.disk = c.img.NewFile(t, dir, "disk.raw")
	var vol harness.Volume
	local.json(t, &vol, "volume", "register", "disk.raw", "--name", "disk")
	if vol.Name != "disk" || !volForm.MatchString(vol.ID) || vol.Path != c.disk {
		t.Fatalf("register printed %+v", vol)
	}
	c.vol = vol.ID
	t.Run("register over TCP says what to do", func(t *testing.T) {
		o := far.run(t, "volume", "register", "disk.raw", "--name", "again")
		if o.code == 0 || o.out != "" || !strings.Contains(o.err, "unix") {
			t.Errorf("exit %d, stdout %q, stderr %q", o.code, o.out, o.err)
		}
	})
	t.Run("snapshots", c.snapshots)
	t.Run("roll back and clone", c.rollBack)
	t.Run("export", c.export)
	t.Run("volumes", c.volumes)
	t.Run("jobs", c.jobs)
	t.Run("delete", c.remove)
	t.Run("errors and exit codes", c.exitCodes)
	t.Run("tables and help", c.tables)
	t.Run("completion", c.completion)
	t.Run("scrub", c.scrub)
}

// cliTour is the state of one walk.
type cliTour struct {
	t          *testing.T
	srv        *harness.Server
	local, far console
	dir        string
	disk       string
	vol        string
	img        *harness.Image // as of the second point
	first      *harness.Image // as of the first
	ss1, ss2   string
}

func (c *cliTour) edit(t *testing.T, e harness.Edit) {
	t.Helper()
	if err := e.ApplyFile(c.disk); err != nil {
		t.Fatal(err)
	}
	c.img.Apply(e)
}

func (c *cliTour) snapshots(t *testing.T) {
	var j harness.Job
	c.far.json(t, &j, "snapshot", "create", c.vol, "--name", "one", "--full", "--description", "first", "--wait")
	if j.Status != "successful" || len(j.ResourceIDs) != 1 {
		t.Fatalf("create --wait printed %+v", j)
	}
	c.ss1, c.first = j.ResourceIDs[0], c.img.Clone()
	c.edit(t, harness.Edit{Kind: harness.WriteText, Off: 50_000, Len: 300_000, Seed: 2})
	c.far.json(t, &j, "snapshot", "create", "disk", "--name", "two") // by name, without --wait
	if j.Status != "pending" || len(j.ResourceIDs) != 1 {
		t.Fatalf("create printed %+v", j)
	}
	c.ss2 = j.ResourceIDs[0]
	c.far.json(t, &j, "job", "wait", j.ID)
	if j.Status != "successful" {
		t.Fatalf("job wait printed %+v", j)
	}
	var list struct {
		Snapshots []harness.Snapshot `json:"snapshots"`
		Total     *int               `json:"total_count"`
	}
	c.far.json(t, &list, "snapshot", "list", "--volume", c.vol)
	if len(list.Snapshots) != 2 || list.Total == nil || *list.Total != 2 || list.Snapshots[1].ID != c.ss1 && list.Snapshots[0].ID != c.ss1 {
		t.Errorf("list printed %+v", list)
	}
	c.far.json(t, &list, "snapshot", "list", "--search", "nothing has this name")
	if list.Snapshots == nil || len(list.Snapshots) != 0 {
		t.Errorf("an empty list printed %+v", list)
	}
	var s harness.Snapshot
	c.far.json(t, &s, "snapshot", "show", c.ss2)
	if s.ID != c.ss2 || s.ParentID != c.ss1 || s.IsHead != 1 {
		t.Errorf("show printed %+v", s)
	}
	c.far.json(t, &s, "snapshot", "rename", c.ss2, "two b")
	if s.Name != "two b" || s.ID != c.ss2 {
		t.Errorf("rename printed %+v", s)
	}
	tree := c.far.ok(t, "snapshot", "tree", c.vol).out
	if !strings.Contains(tree, c.ss1) || strings.Index(tree, c.ss1) > strings.Index(tree, c.ss2) {
		t.Errorf("tree printed\n%s", tree)
	}
}

func (c *cliTour) rollBack(t *testing.T) {
	var j harness.Job
	c.far.json(t, &j, "snapshot", "apply", c.ss1, "--wait", "--yes")
	if j.Status != "successful" || j.Action != "ApplySnapshots" {
		t.Fatalf("apply printed %+v", j)
	}
	c.first.WantFile(t, c.disk)
	c.far.json(t, &j, "snapshot", "apply", c.ss2, "--wait") // a script's form
	c.img.WantFile(t, c.disk)
	c.far.json(t, &j, "snapshot", "create-volume", c.ss1, "--name", "clone", "--wait")
	if j.Status != "successful" || len(j.ResourceIDs) != 1 {
		t.Fatalf("create-volume printed %+v", j)
	}
	c.far.ok(t, "volume", "export", j.ResourceIDs[0], "--to", "clone.raw")
	c.first.WantFile(t, filepath.Join(c.dir, "clone.raw"))
	c.far.json(t, &j, "volume", "delete", j.ResourceIDs[0], "--wait", "--yes")
	if j.Status != "successful" {
		t.Errorf("volume delete printed %+v", j)
	}
}

func (c *cliTour) export(t *testing.T) {
	raw := filepath.Join(c.dir, "out.raw")
	c.far.ok(t, "snapshot", "export", c.ss1, "--format", "raw", "--to", "out.raw")
	c.first.WantFile(t, raw)
	o := c.far.run(t, "snapshot", "export", c.ss2, "--to", "out.raw")
	if o.code == 0 {
		t.Errorf("export over an existing file without --force: exit 0")
	}
	c.first.WantFile(t, raw)
	c.far.ok(t, "snapshot", "export", c.ss2, "--to", "out.raw", "--force")
	c.img.WantFile(t, raw)
	if got := c.far.ok(t, "snapshot", "export", c.ss1, "--to", "-").out; !c.first.Is([]byte(got)) {
		t.Errorf("export --to - gave other bytes (%d)", len(got))
	}
	if o := c.far.run(t, "snapshot", "export", "ss-NOTTHERE", "--to", "none.raw"); o.code != 4 {
		t.Errorf("export of an unknown point: exit %d, %s", o.code, o.err)
	}
	if _, err := os.Stat(filepath.Join(c.dir, "none.raw")); err == nil {
		t.Errorf("a failed export left a file")
	}
	t.Run("qcow2", func(t *testing.T) { c.qcow2(t, raw) })
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains([]string{"disk.raw", "clone.raw", "out.raw", "out.qcow2"}, e.Name()) {
			t.Errorf("the exports left %s", e.Name())
		}
	}
}

// qcow2 has QEMU's own tools judge the image that we wrote.
func (c *cliTour) qcow2(t *testing.T, raw string) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("skipped: no qemu-img here")
	}
	c.far.ok(t, "snapshot", "export", c.ss2, "--format", "qcow2", "--to", "out.qcow2")
	image := filepath.Join(c.dir, "out.qcow2")
	for _, args := range [][]string{
		{"check", "-f", "qcow2", image},
		{"compare", "-f", "raw", "-F", "qcow2", raw, image},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), toolLimit)
		out, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput()
		cancel()
		if err != nil {
			t.Errorf("qemu-img %v: %v\n%s", args, err, out)
		}
	}
}

func (c *cliTour) volumes(t *testing.T) {
	var j harness.Job
	c.far.json(t, &j, "volume", "create", "--size", "1", "--name", "empty", "--wait")
	if j.Status != "successful" || len(j.ResourceIDs) != 1 {
		t.Fatalf("volume create printed %+v", j)
	}
	var v harness.Volume
	c.far.json(t, &v, "volume", "show", j.ResourceIDs[0])
	if v.SizeBytes != 1<<30 || v.Name != "empty" {
		t.Errorf("show printed %+v", v)
	}
	c.far.json(t, &j, "volume", "resize", v.ID, "--size", "2", "--wait")
	c.far.json(t, &v, "volume", "rename", "empty", "still empty")
	if v.SizeBytes != 2<<30 || v.Name != "still empty" {
		t.Errorf("rename printed %+v", v)
	}
	c.far.json(t, &j, "volume", "import", "disk.raw", "--name", "imported", "--wait")
	if j.Status != "successful" || len(j.ResourceIDs) != 1 {
		t.Fatalf("import printed %+v", j)
	}
	c.far.ok(t, "volume", "export", "imported", "--to", "out.raw", "--force")
	c.img.WantFile(t, filepath.Join(c.dir, "out.raw"))
	var list struct {
		Volumes []harness.Volume `json:"volumes"`
		Total   *int             `json:"total_count"`
	}
	c.far.json(t, &list, "volume", "list")
	if len(list.Volumes) != 3 || list.Total == nil || *list.Total != 3 {
		t.Errorf("list printed %+v", list)
	}
}

func (c *cliTour) jobs(t *testing.T) {
	var list struct {
		Jobs  []harness.Job `json:"jobs"`
		Total *int          `json:"total_count"`
	}
	c.far.json(t, &list, "job", "list")
	if len(list.Jobs) < 5 || list.Total == nil || *list.Total < len(list.Jobs) {
		t.Fatalf("job list printed %+v", list)
	}
	var j harness.Job
	c.far.json(t, &j, "job", "show", list.Jobs[0].ID)
	if j.ID != list.Jobs[0].ID || !j.Ended() {
		t.Errorf("job show printed %+v", j)
	}
	c.far.fails(t, 5, "ended", "job", "cancel", j.ID)

	// Progress of a job that lasts goes to stderr only.
	big := harness.NewImage(64 * mib)
	for off := int64(0); off < big.Size(); off += mib {
		big.Apply(harness.Edit{Kind: harness.WriteNoise, Off: off, Len: mib, Seed: uint64(off)})
	}
	id := c.srv.API().Import(t, "big", big)
	o := c.far.ok(t, "snapshot", "create", id, "--name", "big", "--wait", "-o", "json")
	o.decode(t, &j)
	if j.Status != "successful" || o.err == "" {
		t.Errorf("create --wait of a big volume: %s on stdout, stderr %q; want the finished job and progress", j.Status, o.err)
	}
}

func (c *cliTour) remove(t *testing.T) {
	var plan struct {
		Snapshots []string `json:"snapshots"`
		Freed     *int64   `json:"freed_bytes"`
	}
	c.far.json(t, &plan, "snapshot", "delete", c.ss1, "--dry-run")
	slices.Sort(plan.Snapshots)
	want := []string{c.ss1, c.ss2}
	slices.Sort(want)
	if !slices.Equal(plan.Snapshots, want) || plan.Freed == nil {
		t.Errorf("dry run printed %+v, want %v", plan, want)
	}
	var j harness.Job
	c.far.json(t, &j, "snapshot", "delete", c.ss2, "--yes", "--wait")
	if j.Status != "successful" || c.srv.API().MustSnapshot(t, c.ss2).Status != "deleted" {
		t.Errorf("delete printed %+v", j)
	}
}

func (c *cliTour) exitCodes(t *testing.T) {
	c.far.fails(t, 4, "vol-NOTTHERE", "snapshot", "create", "vol-NOTTHERE", "--name", "x")
	c.far.fails(t, 4, "ss-NOTTHERE", "snapshot", "show", "ss-NOTTHERE", "-o", "json")
	c.far.fails(t, 5, c.ss2, "snapshot", "apply", c.ss2, "--yes")
	c.far.fails(t, 2, "", "snapshot", "create")
	c.far.fails(t, 2, "", "snapshot", "list", "--no-such-flag")
	c.far.fails(t, 2, "snapshot", "snapshto", "list")
	c.far.fails(t, 2, "", "snapshot", "create", c.vol, "--name", strings.Repeat("x", 256))
	nobody := console{c.srv.Bin, c.dir, "http://127.0.0.1:1"}
	nobody.fails(t, 6, "127.0.0.1:1", "volume", "list")
	nobody = console{c.srv.Bin, c.dir, "unix://" + c.dir + "/no.sock"}
	nobody.fails(t, 6, "no.sock", "volume", "list", "-o", "json")

	// Two volumes of one name: ids must be named.
	a, b := c.srv.API().CreateVolume(t, "twins", 4096), c.srv.API().CreateVolume(t, "twins", 4096)
	o := c.far.run(t, "volume", "show", "twins")
	if o.code == 0 || !strings.Contains(o.err, a) || !strings.Contains(o.err, b) {
		t.Errorf("an ambiguous name: exit %d, %q", o.code, o.err)
	}

	// A failed job is still printed, and exits 1.
	moveAway(t, c.disk)
	o = c.far.run(t, "snapshot", "create", c.vol, "--name", "gone", "--wait", "-o", "json")
	moveBack(t, c.disk)
	var j harness.Job
	o.decode(t, &j)
	if o.code != 1 || j.Status != "failed" || !strings.Contains(o.err, c.vol) {
		t.Errorf("a failed job: exit %d, %+v, stderr %q", o.code, j, o.err)
	}
	if help := c.far.ok(t, "help", "exit-codes"); !strings.Contains(help.out+help.err, "130") {
		t.Errorf("help exit-codes printed %q", help.out)
	}
}

func (c *cliTour) tables(t *testing.T) {
	for _, args := range [][]string{
		{"volume", "list"}, {"volume", "show", c.vol}, {"snapshot", "list"}, {"snapshot", "show", c.ss1},
		{"snapshot", "tree", c.vol}, {"job", "list"}, {"version"}, {"help"}, {"snapshot", "--help"},
	} {
		o := c.far.ok(t, args...)
		if strings.TrimSpace(o.out) == "" || json.Valid([]byte(o.out)) {
			t.Errorf("%s printed %q", o.call, o.out)
		}
	}
	if o := c.far.ok(t, "volume", "list"); !strings.Contains(o.out, c.vol) {
		t.Errorf("volume list printed\n%s", o.out)
	}
	if o := c.far.ok(t, "volume", "list", "--server", "unix://"+c.srv.Socket()); !strings.Contains(o.out, c.vol) {
		t.Errorf("--server on a command: %q", o.out)
	}
	var v map[string]any
	c.far.json(t, &v, "version")
	if v["version"] == nil {
		t.Errorf("version -o json printed %v", v)
	}
}

func (c *cliTour) completion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		o := c.far.ok(t, "completion", shell)
		if len(o.out) < 500 || !strings.Contains(o.out, "cairn") {
			t.Errorf("completion %s printed %d bytes", shell, len(o.out))
		}
		sh, err := exec.LookPath(shell)
		if err != nil {
			t.Logf("no %s here to read its script", shell)
			continue
		}
		check := exec.Command(sh, "-n")
		check.Stdin = strings.NewReader(o.out)
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("%s -n on its script: %v\n%s", shell, err, out)
		}
	}
	for line, want := range map[string]string{
		"snapshot create ": c.vol, "snapshot show ": c.ss1, "snapshot ": "create-volume", "": "scrub",
	} {
		args := append([]string{"__complete"}, strings.Split(line, " ")...)
		if o := c.far.ok(t, args...); !strings.Contains(o.out, want) {
			t.Errorf("completing %q does not offer %s:\n%s", "cairn "+line, want, o.out)
		}
	}
}

func (c *cliTour) scrub(t *testing.T) {
	c.far.ok(t, "scrub")
	var report map[string]any
	c.far.json(t, &report, "scrub")
	if len(report) == 0 {
		t.Errorf("scrub -o json printed an empty document")
	}
	c.srv.Stop(t)
	var hurt string
	for _, blob := range repositoryBlobs(t, c.srv.Dir) {
		if strings.Contains(blob, "/data/") {
			hurt = blob
		}
	}
	b, err := os.ReadFile(hurt)
	if err != nil {
		t.Fatal(fmt.Errorf("no data pack to damage: %w", err))
	}
	b[len(b)/2] ^= 1
	replaceFile(t, hurt, b)
	c.srv.Run(t)
	o := c.far.run(t, "scrub")
	if o.code != 3 {
		t.Errorf("scrub of a damaged repository: exit %d, want 3\n%s%s", o.code, o.out, o.err)
	}
	o = c.far.run(t, "scrub", "-o", "json")
	o.decode(t, &report)
	if o.code != 3 {
		t.Errorf("scrub -o json of a damaged repository: exit %d, want 3", o.code)
	}
}
