package main

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The kernel's include/uapi/linux/nbd-netlink.h.
const (
	cmdConnect     = 1
	cmdReconfigure = 3

	attrIndex       = 1
	attrSize        = 2
	attrBlockSize   = 3
	attrTimeout     = 4
	attrServerFlags = 5
	attrSockets     = 7
	attrDeadTimeout = 8

	sockItem = 1
	sockFD   = 1
)

var native = binary.NativeEndian

// attribute is a netlink attribute: length, type, value, filled up to 4.
func attribute(kind uint16, value []byte) []byte {
	b := native.AppendUint16(nil, uint16(4+len(value)))
	b = native.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, -len(b)&3)...)
}

func nested(kind uint16, value []byte) []byte {
	return attribute(kind|unix.NLA_F_NESTED, value)
}

func number32(kind uint16, n uint32) []byte { return attribute(kind, native.AppendUint32(nil, n)) }
func number64(kind uint16, n uint64) []byte { return attribute(kind, native.AppendUint64(nil, n)) }

// tellKernel sends a command to the kernel's NBD client.
func tellKernel(command uint8, attributes []byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC)
	if err != nil {
		return fmt.Errorf("netlink socket: %w", err)
	}
	defer unix.Close(fd)
	family, err := nbdFamily(fd)
	if err != nil {
		return fmt.Errorf("ask for the family of nbd: %w", err)
	}
	_, err = call(fd, family, command, attributes)
	return err
}

// nbdFamily is the number that the kernel gave the NBD client's messages.
func nbdFamily(fd int) (uint16, error) {
	answer, err := call(fd, unix.GENL_ID_CTRL, unix.CTRL_CMD_GETFAMILY, attribute(unix.CTRL_ATTR_FAMILY_NAME, []byte("nbd\x00")))
	if err != nil {
		return 0, err
	}
	for len(answer) >= 4 {
		size := int(native.Uint16(answer))
		if size < 4 || size > len(answer) {
			break
		}
		if native.Uint16(answer[2:]) == unix.CTRL_ATTR_FAMILY_ID && size >= 6 {
			return native.Uint16(answer[4:]), nil
		}
		answer = answer[min((size+3)&^3, len(answer)):]
	}
	return 0, errors.New("the kernel names no number")
}

// call sends one generic netlink message and waits until the kernel
// acknowledges it. It returns the attributes of the answer, if there is one.
func call(fd int, family uint16, command uint8, attributes []byte) ([]byte, error) {
	const headers = unix.NLMSG_HDRLEN + unix.GENL_HDRLEN
	b := native.AppendUint32(nil, uint32(headers+len(attributes)))
	b = native.AppendUint16(b, family)
	b = native.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = append(b, make([]byte, 8)...) // sequence and port
	b = append(b, command, 1, 0, 0)   // version 1
	b = append(b, attributes...)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("send to the kernel: %w", err)
	}
	var answer []byte
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return nil, fmt.Errorf("hear the kernel: %w", err)
		}
		for rest := buf[:n]; len(rest) >= headers; {
			size := int(native.Uint32(rest))
			if size < headers || size > len(rest) {
				return nil, errors.New("the kernel's answer is cut")
			}
			if native.Uint16(rest[4:]) == unix.NLMSG_ERROR { // which an acknowledgement is, too
				if code := int32(native.Uint32(rest[unix.NLMSG_HDRLEN:])); code != 0 {
					return nil, unix.Errno(-code)
				}
				return answer, nil
			}
			answer = append([]byte(nil), rest[headers:size]...)
			rest = rest[min((size+3)&^3, len(rest)):]
		}
	}
}
