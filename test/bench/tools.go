package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// tool is something that keeps disks.
type tool interface {
	name() string
	version(ctx context.Context) string
	// start sets up a repository in dir, which is empty; not measured.
	start(ctx context.Context, dir, disk string) (session, error)
}

// session is one tool with one repository.
type session interface {
	backup(ctx context.Context, day int) (usage, error)
	// restore brings back the second day to a new place.
	restore(ctx context.Context) (usage, error)
	// restored is the raw file with what restore brought back; not measured.
	restored(ctx context.Context) (string, error)
	// repository lists what must be kept.
	repository() []string
	close() error
}

// rollbacker is a session that can overwrite the disk itself with day 1.
type rollbacker interface {
	rollback(ctx context.Context) (usage, error)
	// rolledBack is how many bytes the last rollback wrote or zeroed.
	rolledBack() (int64, error)
}

func allTools(cairn string) []tool {
	return []tool{
		cairnTool{cairn},
		plainTool{title: "cp --sparse", ext: "raw", versionOf: "cp",
			save: func(from, to string) []string { return []string{"cp", "--sparse=always", "--reflink=never", from, to} },
			load: func(from, to string) []string { return []string{"cp", "--sparse=always", "--reflink=never", from, to} }},
		plainTool{title: "qemu-img convert -c", ext: "qcow2", versionOf: "qemu-img",
			save: func(from, to string) []string {
				return []string{"qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", from, to}
			},
			load: func(from, to string) []string {
				return []string{"qemu-img", "convert", "-f", "qcow2", "-O", "raw", from, to}
			}},
		resticTool{},
		borgTool{title: "borg"},
		// What borg's documentation recommends for disk images.
		borgTool{title: "borg fixed chunks", create: []string{"--sparse", "--chunker-params", "fixed,4194304"}},
	}
}

func firstLine(ctx context.Context, argv ...string) string {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
	if err != nil {
		return err.Error()
	}
	for i, b := range out {
		if b == '\n' {
			return string(out[:i])
		}
	}
	return string(out)
}

// plainTool writes one file a day.
type plainTool struct {
	title, ext, versionOf string
	save, load            func(from, to string) []string
}

func (t plainTool) name() string { return t.title }

func (t plainTool) version(ctx context.Context) string {
	return firstLine(ctx, t.versionOf, "--version")
}

func (t plainTool) start(_ context.Context, dir, disk string) (session, error) {
	return &plainSession{plainTool: t, dir: dir, disk: disk}, nil
}

type plainSession struct {
	plainTool
	dir, disk string
	files     []string
}

func (s *plainSession) backup(ctx context.Context, day int) (usage, error) {
	to := filepath.Join(s.dir, fmt.Sprintf("day%d.%s", day, s.ext))
	s.files = append(s.files, to)
	u, _, err := measured(ctx, s.dir, 0, nil, s.save(s.disk, to)...)
	return u, err
}

func (s *plainSession) restore(ctx context.Context) (usage, error) {
	u, _, err := measured(ctx, s.dir, 0, nil, s.load(s.files[len(s.files)-1], filepath.Join(s.dir, "out.raw"))...)
	return u, err
}

func (s *plainSession) restored(context.Context) (string, error) {
	return filepath.Join(s.dir, "out.raw"), nil
}
func (s *plainSession) repository() []string { return s.files }
func (s *plainSession) close() error         { return nil }

type resticTool struct{}

func (resticTool) name() string { return "restic" }

func (resticTool) version(ctx context.Context) string { return firstLine(ctx, "restic", "version") }

func (resticTool) start(ctx context.Context, dir, disk string) (session, error) {
	s := &resticSession{dir: dir, disk: disk, env: []string{
		"RESTIC_REPOSITORY=" + filepath.Join(dir, "repo"), "RESTIC_PASSWORD=bench", "RESTIC_CACHE_DIR=" + filepath.Join(dir, "cache"),
	}}
	_, _, err := measured(ctx, dir, 0, s.env, "restic", "init")
	return s, err
}

type resticSession struct {
	dir, disk string
	env       []string
}

func (s *resticSession) backup(ctx context.Context, _ int) (usage, error) {
	u, _, err := measured(ctx, s.dir, 0, s.env, "restic", "--quiet", "backup", s.disk)
	return u, err
}

func (s *resticSession) restore(ctx context.Context) (usage, error) {
	u, _, err := measured(ctx, s.dir, 0, s.env, "restic", "--quiet", "restore", "latest", "--target", filepath.Join(s.dir, "out"))
	return u, err
}

func (s *resticSession) restored(context.Context) (string, error) {
	return filepath.Join(s.dir, "out", s.disk), nil
}
func (s *resticSession) repository() []string { return []string{filepath.Join(s.dir, "repo")} }
func (s *resticSession) close() error         { return nil }

type borgTool struct {
	title  string
	create []string // more flags of borg create
}

func (t borgTool) name() string { return t.title }

func (borgTool) version(ctx context.Context) string { return firstLine(ctx, "borg", "--version") }

func (t borgTool) start(ctx context.Context, dir, disk string) (session, error) {
	s := &borgSession{borgTool: t, dir: dir, disk: disk, env: []string{
		"BORG_REPO=" + filepath.Join(dir, "repo"), "BORG_PASSPHRASE=bench", "BORG_BASE_DIR=" + filepath.Join(dir, "base"),
	}}
	_, _, err := measured(ctx, dir, 0, s.env, "borg", "init", "--encryption", "repokey-blake2")
	return s, err
}

type borgSession struct {
	borgTool
	dir, disk string
	env       []string
}

func (s *borgSession) backup(ctx context.Context, day int) (usage, error) {
	argv := append([]string{"borg", "create"}, s.create...)
	u, _, err := measured(ctx, s.dir, 0, s.env, append(argv, "::day"+strconv.Itoa(day), s.disk)...)
	return u, err
}

func (s *borgSession) restore(ctx context.Context) (usage, error) {
	// borg extracts into the working folder, which measured sets to dir.
	u, _, err := measured(ctx, s.dir, 0, s.env, "borg", "extract", "--sparse", "::day1")
	return u, err
}

func (s *borgSession) restored(context.Context) (string, error) {
	return filepath.Join(s.dir, s.disk), nil
}
func (s *borgSession) repository() []string { return []string{filepath.Join(s.dir, "repo")} }
func (s *borgSession) close() error         { return nil }

type cairnTool struct{ binary string }

func (cairnTool) name() string { return "cairn" }

func (t cairnTool) version(ctx context.Context) string { return firstLine(ctx, t.binary, "version") }

func (t cairnTool) start(ctx context.Context, dir, disk string) (session, error) {
	s := &cairnSession{binary: t.binary, dir: dir, data: filepath.Join(dir, "data")}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s.log, err = os.Create(filepath.Join(dir, "server.log"))
	if err != nil {
		return nil, err
	}
	s.server = exec.Command(t.binary, "serve", "--data-dir", s.data, "--fill-rate", "0", "--listen", fmt.Sprintf("127.0.0.1:%d", port))
	s.server.Stdout, s.server.Stderr = s.log, s.log
	if err := s.server.Start(); err != nil {
		return nil, err
	}
	if err := s.ready(ctx, disk); err != nil {
		log, _ := os.ReadFile(s.log.Name())
		return nil, errors.Join(err, s.close(), fmt.Errorf("the server said: %s", log))
	}
	return s, nil
}

type cairnSession struct {
	binary, dir, data string
	server            *exec.Cmd
	log               *os.File
	volume            string
	points            []string
	clone             string
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// ready waits for the server and registers the disk.
func (s *cairnSession) ready(ctx context.Context, disk string) error {
	sock := filepath.Join(s.data, "cairn.sock")
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", sock)
		},
	}}
	var last error
	for range 200 {
		var resp *http.Response
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/healthz", nil)
		if err != nil {
			return err
		}
		if resp, last = client.Do(req); last == nil {
			last = resp.Body.Close()
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	client.CloseIdleConnections()
	if last != nil {
		return fmt.Errorf("the server does not answer: %w", last)
	}
	var err error
	s.volume, err = s.register(ctx, disk)
	return err
}

// register makes a disk known and returns its volume's id.
func (s *cairnSession) register(ctx context.Context, disk string) (string, error) {
	_, out, err := s.cli(ctx, "volume", "register", disk, "--name", "bench")
	if err != nil {
		return "", err
	}
	var volume struct {
		ID string `json:"volume_id"`
	}
	if err := json.Unmarshal(out, &volume); err != nil {
		return "", fmt.Errorf("answer of register: %w: %s", err, out)
	}
	return volume.ID, nil
}

// cli measures one command together with the server.
func (s *cairnSession) cli(ctx context.Context, args ...string) (usage, []byte, error) {
	argv := append([]string{s.binary, "--server", s.address(), "-o", "json"}, args...)
	return measured(ctx, s.dir, s.server.Process.Pid, nil, argv...)
}

// job is cli for commands whose answer is a job; it returns the new object.
func (s *cairnSession) job(ctx context.Context, args ...string) (usage, string, error) {
	u, out, err := s.cli(ctx, append(args, "--wait")...)
	if err != nil {
		return u, "", err
	}
	var job struct {
		Resources []string `json:"resource_ids"`
	}
	if err := json.Unmarshal(out, &job); err != nil || len(job.Resources) == 0 {
		return u, "", fmt.Errorf("answer of %s: %w: %s", args[1], err, out)
	}
	return u, job.Resources[0], nil
}

func (s *cairnSession) backup(ctx context.Context, day int) (usage, error) {
	args := []string{"snapshot", "create", s.volume, "--name", "day" + strconv.Itoa(day)}
	if day == 0 {
		args = append(args, "--full")
	}
	u, id, err := s.job(ctx, args...)
	s.points = append(s.points, id)
	return u, err
}

// restore makes a new volume and waits until all of it is there, durably: the
// volume can be used long before, but that is not what the others do.
func (s *cairnSession) restore(ctx context.Context) (u usage, err error) {
	// One command, so that it is measured as one.
	script := `set -e
clone=$("$1" --server "$2" -o json snapshot create-volume "$3" --name restored --wait | jq -r '.resource_ids[0]')
"$1" --server "$2" volume wait "$clone" >&2
printf %s "$clone"`
	u, out, err := measured(ctx, s.dir, s.server.Process.Pid, nil, "bash", "-c", script, "bash",
		s.binary, s.address(), s.points[len(s.points)-1])
	s.clone = string(out)
	return u, err
}

func (s *cairnSession) address() string { return "unix://" + filepath.Join(s.data, "cairn.sock") }

func (s *cairnSession) restored(ctx context.Context) (string, error) {
	out := filepath.Join(s.dir, "out.raw")
	_, _, err := s.cli(ctx, "volume", "export", s.clone, "--to", out)
	return out, err
}

func (s *cairnSession) rollback(ctx context.Context) (usage, error) {
	u, _, err := s.job(ctx, "snapshot", "apply", s.points[0])
	return u, err
}

// rolledBack reads what the server's log says.
func (s *cairnSession) rolledBack() (int64, error) {
	log, err := os.ReadFile(s.log.Name())
	if err != nil {
		return 0, err
	}
	_, after, ok := bytes.Cut(log[max(0, bytes.LastIndex(log, []byte("volume restored"))):], []byte("written_bytes="))
	var written, zeroed int64
	if !ok {
		return 0, errors.New("the server's log tells of no rollback")
	}
	_, err = fmt.Sscanf(string(after), "%d zeroed_bytes=%d", &written, &zeroed)
	return written + zeroed, err
}

// repository is all of the data folder but the reserve, which stands ready for
// a full disk and does not grow.
func (s *cairnSession) repository() []string {
	all, _ := filepath.Glob(filepath.Join(s.data, "*"))
	index := filepath.Join(s.data, "index")
	all = slices.DeleteFunc(all, func(path string) bool { return path == index })
	runs, _ := filepath.Glob(filepath.Join(index, "run-*"))
	return append(all, runs...)
}

func (s *cairnSession) close() error {
	if err := s.server.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.AfterFunc(time.Minute, func() { _ = s.server.Process.Kill() })
	defer timer.Stop()
	return errors.Join(s.server.Wait(), s.log.Close())
}
