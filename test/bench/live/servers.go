package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"cairn/client"
)

// process is a server that was started.
type process struct {
	cmd *exec.Cmd
	log *os.File
}

// start runs a server until stop and waits until it listens at socket. Its
// output goes to a file beside.
func start(ctx context.Context, socket, name string, args ...string) (*process, error) {
	log, err := os.Create(socket + ".log")
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(name, args...), log: log}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		nc, err := net.Dial("unix", socket)
		if err == nil {
			return p, nc.Close()
		}
		if ctx.Err() != nil || time.Now().After(end) {
			said, _ := os.ReadFile(log.Name())
			return nil, errors.Join(fmt.Errorf("%s does not listen: %w: %s", name, err, said), p.stop())
		}
	}
}

func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = nil // some end by the signal, some with a status of their own
	}
	return errors.Join(err, p.log.Close())
}

// rig is a running cairn.
type rig struct {
	*process
	*client.Client
	data string // its folder
}

func startCairn(ctx context.Context, binary, dir string) (*rig, error) {
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, err
	}
	socket := filepath.Join(data, "cairn.sock")
	p, err := start(ctx, socket, binary, "serve", "--data-dir", data, "--listen", "127.0.0.1:0", "--fill-rate", "0")
	if err != nil {
		return nil, err
	}
	c, err := client.New("unix://" + socket)
	if err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return &rig{p, c, data}, nil
}

// ended waits for a job and returns the ids of what it made.
func (r *rig) ended(ctx context.Context, j client.Job, err error) ([]string, error) {
	if err != nil {
		return nil, err
	}
	if j, err = r.WaitJob(ctx, j.ID, nil); err != nil {
		return nil, err
	}
	return j.ResourceIDs, j.Err()
}

// one is ended for jobs that make one thing.
func (r *rig) one(ctx context.Context, j client.Job, err error) (string, error) {
	ids, err := r.ended(ctx, j, err)
	if err == nil && len(ids) != 1 {
		err = fmt.Errorf("job %s made %v, want one", j.ID, ids)
	}
	if err != nil {
		return "", err
	}
	return ids[0], nil
}

func (r *rig) newVolume(ctx context.Context, size int64) (string, error) {
	j, err := r.CreateVolumes(ctx, client.CreateVolumes{Name: "bench", SizeBytes: size})
	return r.one(ctx, j, err)
}

func (r *rig) point(ctx context.Context, volume string, full bool) (string, error) {
	j, err := r.CreateSnapshots(ctx, client.CreateSnapshots{Resources: []string{volume}, Name: "bench", Full: full})
	return r.one(ctx, j, err)
}

// uri is where clients connect to a volume.
func (r *rig) uri(ctx context.Context, volume string) (string, error) {
	v, err := r.Volume(ctx, volume)
	if err != nil {
		return "", err
	}
	if len(v.NBDURIs) == 0 {
		return "", fmt.Errorf("volume %s is not served", volume)
	}
	return v.NBDURIs[0], nil
}
