package qemu

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"cairn/internal/errs"
)

// probeLimit is far beyond what a machine needs for some instructions.
const probeLimit = 5 * time.Second

// bootSector goes to protected mode, as every guest does, and ends the emulator
// there by way of its exit device.
func bootSector() []byte {
	const (
		origin     = 0x7c00 // where the BIOS puts it
		main       = 25
		table      = 40
		descriptor = 56
	)
	b := make([]byte, 512)
	copy(b, []byte{
		0xfa,                   // cli
		0x31, 0xc0, 0x8e, 0xd8, // xor ax, ax; mov ds, ax
		0x0f, 0x01, 0x16, descriptor, origin >> 8, // lgdt [descriptor]
		0x0f, 0x20, 0xc0, 0x66, 0x83, 0xc8, 0x01, 0x0f, 0x22, 0xc0, // cr0 |= 1
		0xea, main, origin >> 8, 0x08, 0x00, // jmp 8:main
	})
	copy(b[main:], []byte{0xba, 0x01, 0x05, 0x00, 0x00, 0xb0, 0x10, 0xee, 0xf4}) // mov edx, 0x501; mov al, 0x10; out dx, al; hlt
	copy(b[table+8:], []byte{0xff, 0xff, 0x00, 0x00, 0x00, 0x9a, 0xcf, 0x00})    // all memory, as code
	copy(b[descriptor:], []byte{0x0f, 0x00, table, origin >> 8, 0x00, 0x00})     // its size and place
	b[510], b[511] = 0x55, 0xaa
	return b
}

const probeStatus = 0x10<<1 | 1

// acceleration is the one that was asked for, or the best that works. That
// /dev/kvm can be opened says little: where a hypervisor lies below, a guest may
// die at its first instruction. So one is run.
func acceleration(ctx context.Context, binary, asked string) (string, error) {
	switch asked {
	case "":
		if runs(ctx, binary, "kvm") == nil {
			return "kvm", nil
		}
		asked = "tcg"
	case "kvm", "tcg":
	default:
		return "", errs.New(errs.Invalid, "%q is no acceleration of machines; choose kvm or tcg, or let it be found out", asked)
	}
	if err := runs(ctx, binary, asked); err != nil {
		return "", errs.Wrap(errs.Unavailable, err, "%s runs no machine with %s acceleration", binary, asked)
	}
	return asked, nil
}

// runs reports whether a machine with an acceleration gets as far as its own
// code.
func runs(ctx context.Context, binary, accel string) (err error) {
	dir, err := os.MkdirTemp("", "cairn-probe-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	disk := filepath.Join(dir, "boot")
	if err := os.WriteFile(disk, bootSector(), 0o600); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-machine", "pc,accel="+accel, "-cpu", processor(accel), "-m", "16", "-nodefaults", "-no-user-config",
		"-display", "none", "-no-reboot", "-drive", "file="+disk+",format=raw,if=floppy,readonly=on",
		"-device", "isa-debug-exit,iobase=0x501,iosize=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == probeStatus {
		return nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return errs.Wrap(errs.Unavailable, err, "the probe machine did not run: %.200s", out)
}
