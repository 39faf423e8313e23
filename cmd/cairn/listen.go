package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"

	"cairn/internal/errs"
)

// listenTCP listens on a loopback address; others are refused as long as there
// are no accounts.
func listenTCP(flag, addr string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "%s %q is not HOST:PORT; try 127.0.0.1:7480", flag, addr)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, errs.New(errs.Invalid, "%s %s is refused: there are no accounts yet, so anyone who reaches the address could overwrite volumes; use a loopback address such as 127.0.0.1:7480 and a tunnel (ssh -L) from elsewhere", flag, addr)
	}
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, errs.Wrap(errs.Conflict, err, "%s is taken by another program; choose another port with %s", addr, flag)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}

// listenUnix listens on a socket with mode 0600. The caller holds the
// folder's lock, so a socket that is there is a dead process's.
func listenUnix(path string) (net.Listener, error) {
	if len(path) > 107 {
		return nil, errs.New(errs.Invalid, "the path %s is too long for a unix socket (107 bytes at most); use a --data-dir with a shorter path", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the old socket: %w", err)
	}
	// Nobody may connect between bind and chmod.
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}
