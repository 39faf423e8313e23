// Command nbdnetlink attaches an NBD export to the kernel's client in a way
// that survives a server that is started again. Debian's nbd-client (3.24)
// can attach by netlink too, but neither lets requests wait for a new
// connection nor hands the kernel one.
//
//	nbdnetlink connect   ADDRESS PORT NAME INDEX WAIT ANSWER
//	nbdnetlink reconnect ADDRESS PORT NAME INDEX
//
// connect attaches /dev/nbdINDEX, on which requests wait WAIT seconds for a
// new connection when theirs is gone; it is when an answer takes more than
// ANSWER seconds. reconnect gives the kernel a new connection in place of one
// that is gone, and does nothing if none is. The kernel keeps the socket; the
// command ends.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "nbdnetlink:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 5 {
		return errors.New("usage: nbdnetlink connect|reconnect ADDRESS PORT NAME INDEX [WAIT ANSWER]")
	}
	index, err := strconv.ParseUint(args[4], 10, 32)
	if err != nil {
		return err
	}
	server, err := netip.ParseAddrPort(args[1] + ":" + args[2])
	if err != nil {
		return err
	}
	export, err := dial(server, args[3])
	if err != nil {
		return err
	}
	attributes := number32(attrIndex, uint32(index))
	attributes = append(attributes, nested(attrSockets, nested(sockItem, number32(sockFD, uint32(export.fd))))...)
	if args[0] == "reconnect" {
		return tellKernel(cmdReconfigure, attributes)
	}
	if len(args) != 7 {
		return errors.New("connect needs WAIT and ANSWER")
	}
	for i, kind := range []uint16{attrDeadTimeout, attrTimeout} {
		seconds, err := strconv.ParseUint(args[5+i], 10, 32)
		if err != nil {
			return err
		}
		attributes = append(attributes, number64(kind, seconds)...)
	}
	attributes = append(attributes, number64(attrSize, export.size)...)
	attributes = append(attributes, number64(attrBlockSize, 512)...)
	attributes = append(attributes, number64(attrServerFlags, uint64(export.flags))...)
	return tellKernel(cmdConnect, attributes)
}

// export is what a server said of an export, and the connection to it.
type export struct {
	fd    int
	size  uint64
	flags uint16
}

// dial does the fixed newstyle handshake of the NBD protocol, with its oldest
// way to choose an export.
func dial(server netip.AddrPort, name string) (e export, err error) {
	if e.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); err != nil {
		return e, fmt.Errorf("socket: %w", err)
	}
	if err := unix.Connect(e.fd, &unix.SockaddrInet4{Port: int(server.Port()), Addr: server.Addr().As4()}); err != nil {
		return e, fmt.Errorf("connect to %v: %w", server, err)
	}
	hello := make([]byte, 18)
	if err := readFull(e.fd, hello); err != nil {
		return e, err
	}
	if string(hello[:16]) != "NBDMAGICIHAVEOPT" {
		return e, fmt.Errorf("%v is no NBD server: it said %q", server, hello)
	}
	ask := binary.BigEndian.AppendUint32(nil, 3) // fixed newstyle, no zeroes
	ask = append(ask, "IHAVEOPT"...)
	ask = binary.BigEndian.AppendUint32(ask, 1) // NBD_OPT_EXPORT_NAME
	ask = binary.BigEndian.AppendUint32(ask, uint32(len(name)))
	ask = append(ask, name...)
	if _, err := unix.Write(e.fd, ask); err != nil {
		return e, fmt.Errorf("write: %w", err)
	}
	answer := make([]byte, 10)
	if err := readFull(e.fd, answer); err != nil {
		return e, fmt.Errorf("export %s: %w", name, err)
	}
	e.size, e.flags = binary.BigEndian.Uint64(answer), binary.BigEndian.Uint16(answer[8:])
	return e, nil
}

func readFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Read(fd, b)
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if n == 0 {
			return errors.New("the server hung up")
		}
		b = b[n:]
	}
	return nil
}
