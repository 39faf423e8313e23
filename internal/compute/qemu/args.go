package qemu

import (
	"encoding/json"
	"fmt"
	"net"

	"cairn/internal/compute"
	"cairn/internal/errs"
	"cairn/internal/nbd"
)

// Names in a machine's folder, which is the process's working folder: a unix
// socket's path may have 107 bytes only.
const (
	pidFile       = "pid"
	monitorSocket = "monitor"
	agentSocket   = "agent"
	consoleSocket = "console"
	consoleLog    = "console.log"

	agentChannel = "agent" // QEMU's name for the agent's socket
	processLog   = "qemu.log"
)

const (
	// maxSerial is what virtio-blk has room for.
	maxSerial = 20
	// reconnect seconds a guest's requests wait for a server that is away: it may
	// be an upgrade, or somebody who sleeps.
	reconnect = 7 * 24 * 3600
)

// arguments is the command line of a machine.
func arguments(s compute.Spec, accel string) ([]string, error) {
	args := []string{
		"-name", "guest=" + s.ID + ",debug-threads=on",
		"-machine", "pc,accel=" + accel + ",usb=off",
		"-cpu", processor(accel), "-smp", fmt.Sprint(s.CPUs), "-m", fmt.Sprintf("size=%dk", s.Memory>>10),
		"-nodefaults", "-no-user-config", "-display", "none", "-vga", "std",
		"-rtc", "base=utc", "-boot", "strict=on",
		// What breaks out of the emulator starts no program.
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-pidfile", pidFile,
		"-chardev", "socket,id=monitor,path=" + monitorSocket + ",server=on,wait=off", "-mon", "chardev=monitor,mode=control",
		"-chardev", "socket,id=console,path=" + consoleSocket + ",server=on,wait=off,logfile=" + consoleLog + ",logappend=on", "-serial", "chardev:console",
		"-device", "virtio-serial-pci,id=channels",
		"-chardev", "socket,id=" + agentChannel + ",path=" + agentSocket + ",server=on,wait=off",
		"-device", "virtserialport,bus=channels.0,chardev=" + agentChannel + ",name=org.qemu.guest_agent.0",
		"-device", "virtio-rng-pci",
	}
	for i, disk := range s.Disks {
		node, err := blockdev(disk)
		if err != nil {
			return nil, err
		}
		dev := device(disk)
		if i == 0 {
			dev["bootindex"] = 1
		}
		for _, option := range []struct {
			name  string
			value map[string]any
		}{{"-blockdev", node}, {"-device", dev}} {
			b, err := json.Marshal(option.value)
			if err != nil {
				return nil, err
			}
			args = append(args, option.name, string(b))
		}
	}
	return args, nil
}

// processor is the best that an acceleration can show to a guest.
func processor(accel string) string {
	if accel == "kvm" {
		return "host"
	}
	return "max"
}

// blockdev is the node that reads a disk's export. Its name is the disk's id.
func blockdev(disk compute.Disk) (map[string]any, error) {
	u, err := nbd.ParseURI(disk.URI)
	if err != nil {
		return nil, err
	}
	server := map[string]any{"type": "unix", "path": u.Address}
	if u.Network == "tcp" {
		host, port, err := net.SplitHostPort(u.Address)
		if err != nil {
			return nil, errs.Wrap(errs.Invalid, err, "disk %s has no address that a machine can reach", disk.ID)
		}
		server = map[string]any{"type": "inet", "host": host, "port": port}
	}
	return map[string]any{
		"driver": "nbd", "node-name": disk.ID, "server": server, "export": u.Export,
		"reconnect-delay": reconnect, "discard": "unmap",
	}, nil
}

// device is what the guest sees of a disk.
func device(disk compute.Disk) map[string]any {
	return map[string]any{
		"driver": "virtio-blk-pci", "id": deviceID(disk.ID), "drive": disk.ID, "serial": disk.ID,
		// A full disk of the server pauses the machine; the guest does not lose its
		// filesystem to an error that passes.
		"werror": "enospc", "rerror": "report",
	}
}

func deviceID(disk string) string { return "d-" + disk }
