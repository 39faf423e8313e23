package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"cairn/client"
	"cairn/test/e2e/guest"
)

const (
	machineTries = 5
	machineDisk  = 1 << 30 // of the volume that the machine has, written whole
	guestLimit   = 2 * time.Minute
)

// machineFigures are of a machine. All lists are of seconds.
type machineFigures struct {
	increments []float64 // a point of machine and volume, 1 % of the volume changed, call to end of job
	converts   []float64 // qemu-img convert of the volume's content
	boots      []float64 // from the process's start to the guest's first word
	applies    []float64 // from the apply to that
	noMachine  string    // why nothing was measured
}

// measureMachine runs a machine with a volume. Where no guest can be made the
// report says so.
func (r *results) measureMachine(ctx context.Context, c *rig) (err error) {
	dir, err := os.MkdirTemp(r.conf.dir, "guest-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	disk := filepath.Join(dir, "disk.raw")
	if err := guest.WriteDisk(disk, guest.DiskConfig()); err != nil {
		r.noMachine, _, _ = strings.Cut(err.Error(), "\n")
		return nil
	}
	machine, volume, err := c.runMachine(ctx, disk)
	if err != nil {
		return err
	}
	defer func() {
		j, derr := c.DeleteInstances(context.WithoutCancel(ctx), machine)
		_, derr = c.ended(context.WithoutCancel(ctx), j, derr)
		err = errors.Join(err, derr)
	}()
	plain := filepath.Join(dir, "plain.raw")
	for range machineTries {
		if err := r.measureIncrement(ctx, c, machine, volume, plain); err != nil {
			return err
		}
		if err := r.measureApply(ctx, c, machine); err != nil {
			return err
		}
	}
	return nil
}

// runMachine makes an image of a disk and a machine of that, with a volume that
// is written whole.
func (r *rig) runMachine(ctx context.Context, disk string) (machine, volume string, err error) {
	f, err := os.Open(disk)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	j, err := r.ImportImage(ctx, client.ImportImage{Name: "bench", SizeBytes: guest.DiskSize}, f)
	image, err := r.one(ctx, j, err)
	if err != nil {
		return "", "", err
	}
	if volume, err = r.newVolume(ctx, machineDisk); err != nil {
		return "", "", err
	}
	n, err := r.connect(ctx, volume)
	if err != nil {
		return "", "", err
	}
	if err := errors.Join(fill(ctx, n, machineDisk), n.Close()); err != nil {
		return "", "", err
	}
	j, err = r.RunInstances(ctx, client.RunInstances{Image: image, Name: "bench", Memory: 192})
	if machine, err = r.one(ctx, j, err); err != nil {
		return "", "", err
	}
	j, err = r.AttachVolumes(ctx, machine, volume)
	if _, err := r.ended(ctx, j, err); err != nil {
		return "", "", err
	}
	_, err = r.pointOf(ctx, machine, volume)
	return machine, volume, err
}

func (r *rig) pointOf(ctx context.Context, resources ...string) ([]string, error) {
	j, err := r.CreateSnapshots(ctx, client.CreateSnapshots{Resources: resources, Name: "bench"})
	return r.ended(ctx, j, err)
}

// inside runs a command in the machine's guest once that has booted.
func (r *rig) inside(machine, command string) error {
	g, err := guest.Dial(filepath.Join(r.data, "volumes", "machines", machine, "console"), guestLimit)
	if err != nil {
		return err
	}
	_, err = g.Must(command)
	return errors.Join(err, g.Close())
}

// measureIncrement has the guest change 1 % of the volume and takes a point of
// it; qemu-img copies an equal file beside.
func (r *results) measureIncrement(ctx context.Context, c *rig, machine, volume, plain string) error {
	const changed = machineDisk / 100 >> 20 // MiB
	err := c.inside(machine, fmt.Sprintf(
		"for i in $(seq %d); do dd if=/dev/urandom of=/dev/vdb bs=1M count=1 seek=$((i*97)) conv=notrunc 2>/dev/null; done; sync", changed))
	if err != nil {
		return err
	}
	begin := time.Now()
	points, err := c.pointOf(ctx, machine, volume)
	if err != nil {
		return err
	}
	r.increments = append(r.increments, time.Since(begin).Seconds())
	for _, p := range points {
		s, err := c.Snapshot(ctx, p)
		if err != nil {
			return err
		}
		if s.IsFull() || s.CBT != "tracked" {
			return fmt.Errorf("%s is no tracked increment: %s, %s", p, s.Type, s.CBT)
		}
	}
	if _, err := os.Stat(plain); err != nil {
		if err := c.save(ctx, volume, plain); err != nil {
			return err
		}
	}
	begin = time.Now()
	cmd := exec.CommandContext(ctx, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", plain, plain+".qcow2")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	r.converts = append(r.converts, time.Since(begin).Seconds())
	return os.Remove(plain + ".qcow2")
}

// save writes a volume's content to a file.
func (r *rig) save(ctx context.Context, volume, name string) (err error) {
	e, err := r.ExportVolume(ctx, volume, client.Raw)
	if err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return errors.Join(err, e.Close())
	}
	_, err = f.ReadFrom(e)
	return errors.Join(err, f.Close(), e.Close())
}

// measureApply starts the machine, and rolls it back while it runs.
func (r *results) measureApply(ctx context.Context, c *rig, machine string) error {
	points, err := c.pointOf(ctx, machine)
	if err != nil {
		return err
	}
	for _, m := range []struct {
		times *[]float64
		do    func() (client.Job, error)
	}{
		{&r.boots, func() (client.Job, error) { return c.StartInstances(ctx, machine) }},
		{&r.applies, func() (client.Job, error) { return c.ApplySnapshots(ctx, points[0]) }},
	} {
		if m.times == &r.boots {
			j, err := c.StopInstances(ctx, true, machine)
			if _, err := c.ended(ctx, j, err); err != nil {
				return err
			}
		}
		words, err := c.words(ctx, machine)
		if err != nil {
			return err
		}
		begin := time.Now()
		j, err := m.do()
		if _, err := c.ended(ctx, j, err); err != nil {
			return err
		}
		for {
			now, err := c.words(ctx, machine)
			if err != nil {
				return err
			}
			if now > words {
				break
			}
			if time.Since(begin) > guestLimit {
				return errors.New("the guest says nothing")
			}
			time.Sleep(10 * time.Millisecond)
		}
		*m.times = append(*m.times, time.Since(begin).Seconds())
	}
	return nil
}

// words counts how often the guest was ready, by its console.
func (r *rig) words(ctx context.Context, machine string) (int, error) {
	e, err := r.Console(ctx, machine, 0)
	if err != nil {
		return 0, err
	}
	var b strings.Builder
	_, err = io.Copy(&b, e)
	return strings.Count(b.String(), "ready"), errors.Join(err, e.Close())
}

func (f *machineFigures) report(b *strings.Builder) {
	b.WriteString("\n## A machine\n\n")
	if f.noMachine != "" {
		fmt.Fprintf(b, "Not measured: %s.\n", f.noMachine)
		return
	}
	fmt.Fprintf(b, "A guest without KVM, with a volume of %d GiB, written whole. Medians of %d.\n\n| | s |\n|---|---:|\n", machineDisk>>30, machineTries)
	fmt.Fprintf(b, "| point of the running machine and its volume, of which 1 %% changed: call to end of job | %.2f |\n", median(f.increments))
	fmt.Fprintf(b, "| qemu-img convert of an equal file to qcow2 | %.2f |\n", median(f.converts))
	fmt.Fprintf(b, "| start: call to the guest's first word | %.2f |\n", median(f.boots))
	fmt.Fprintf(b, "| apply to the running machine: call to the guest's first word, after it ended when asked to | %.2f |\n", median(f.applies))
	fmt.Fprintf(b, "\nThe point takes %.2f of what the copy takes. What an apply adds to the boot, the guest's own end included: %.2f s.\n",
		median(f.increments)/median(f.converts), median(f.applies)-median(f.boots))
}
