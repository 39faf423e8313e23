package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// fuzzPatience is how long one input may take; the server and the client have
// no reason to wait for anything.
const fuzzPatience = 20 * time.Second

func requestBytes(cmd, flags uint16, off uint64, length uint32, payload ...byte) []byte {
	b := make([]byte, requestLen+len(payload))
	(&request{flags: flags, cmd: cmd, cookie: 7, off: off, length: length}).put(b)
	copy(b[requestLen:], payload)
	return b
}

// FuzzServer feeds a connection of the server, from its greeting on, or from
// the first request on. Whatever comes, it ends when the peer hangs up, gives
// back all that it took, and the backend sees only what it may.
func FuzzServer(f *testing.F) {
	greet := []byte{0, 0, 0, 3}
	attach := bytes.Join([][]byte{greet, option(optStructuredReply, nil),
		option(optSetMetaContext, queriesData("v", BaseAllocation)), option(optGo, infoData("v", infoBlockSize))}, nil)
	f.Add(false, attach)
	f.Add(false, append(bytes.Clone(greet), option(optExportName, []byte("v"))...))
	f.Add(false, bytes.Join([][]byte{greet, option(optList, nil), option(optInfo, infoData("v", infoName)), option(optListMetaContext, queriesData("v", "base:")), option(optAbort, nil)}, nil))
	f.Add(true, bytes.Join([][]byte{
		requestBytes(cmdWrite, cmdFlagFUA, 4096, 4, 1, 2, 3, 4), requestBytes(cmdRead, cmdFlagDF, 0, 100000), requestBytes(cmdRead, 0, 0, 1<<20),
		requestBytes(cmdFlush, 0, 0, 0), requestBytes(cmdTrim, 0, 0, 4096), requestBytes(cmdWriteZeroes, cmdFlagNoHole|cmdFlagFastZero, 8192, 4096),
		requestBytes(cmdCache, 0, 0, 512), requestBytes(cmdBlockStatus, cmdFlagReqOne, 0, 1<<20), requestBytes(cmdDisconnect, 0, 0, 0),
	}, nil))
	f.Add(true, requestBytes(cmdWrite, 0, 1<<63, 1<<31, 1, 2, 3))
	f.Fuzz(func(t *testing.T, attached bool, input []byte) {
		s := NewServer(Limits{OptionBytes: 4096, Handshake: time.Minute}, nil)
		b := &strict{memory: newMemory(exportSize), t: t}
		e, err := s.Add(everything("v", exportSize), b)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := net.Pipe()
		c := newConn(context.Background(), s, ours)
		var running sync.WaitGroup
		running.Go(c.serve)
		running.Go(func() { io.Copy(io.Discard, theirs) })
		theirs.SetWriteDeadline(time.Now().Add(fuzzPatience))
		if attached {
			input = append(bytes.Clone(attach), input...)
		}
		if _, err := theirs.Write(input); err != nil && errors.Is(err, context.DeadlineExceeded) {
			t.Error("the server takes no bytes")
		}
		theirs.Close()
		running.Wait()
		if e.Connections() != 0 {
			t.Error("the connection is still attached")
		}
		if !s.bytes.TryAcquire(s.limits.TotalBytes) || !c.bytes.TryAcquire(s.limits.ConnBytes) {
			t.Error("the connection holds bytes of the limits")
		}
	})
}

// strict fails the test when the backend is asked for what it never may be.
type strict struct {
	*memory
	t *testing.T
}

func (s *strict) check(off, length int64) {
	if off < 0 || length <= 0 || off > exportSize-length {
		s.t.Errorf("the backend is asked for %d bytes at %d", length, off)
	}
}

func (s *strict) ReadAt(ctx context.Context, p []byte, off int64) error {
	s.check(off, int64(len(p)))
	return s.memory.ReadAt(ctx, p, off)
}

func (s *strict) WriteAt(ctx context.Context, p []byte, off int64, flags Flags) error {
	s.check(off, int64(len(p)))
	return s.memory.WriteAt(ctx, p, off, flags)
}

func (s *strict) Trim(ctx context.Context, off, length int64, flags Flags) error {
	s.check(off, length)
	return s.memory.Trim(ctx, off, length, flags)
}

func (s *strict) Zero(ctx context.Context, off, length int64, flags Flags) error {
	s.check(off, length)
	return s.memory.Zero(ctx, off, length, flags)
}

func (s *strict) Status(ctx context.Context, into []Extent, name string, off, length int64, limit int) ([]Extent, error) {
	s.check(off, length)
	return s.memory.Status(ctx, into, name, off, length, limit)
}

// FuzzClient lets a server send anything, from its greeting on, or from the
// first reply on. The client never hangs or panics, and hands out extents only
// within what was asked for.
func FuzzClient(f *testing.F) {
	right := &fake{offer: usual}
	shake := bytes.Join([][]byte{right.hello(), optionReply(optStructuredReply, repAck, nil),
		right.contexts(optSetMetaContext, queriesData("", usual.contexts...)), optionReply(optSetMetaContext, repAck, nil),
		right.info(), optionReply(optGo, repAck, nil)}, nil)
	f.Add(false, shake)
	f.Add(false, shake[:100])
	read, status := request{cookie: 1, off: 512, length: 1024}, request{cmd: cmdBlockStatus, cookie: 2, off: 512, length: 1024}
	f.Add(true, append(right.right(&read), right.right(&status)...))
	f.Add(true, append(right.right(&status), simpleBytes(EIO, 1)...))
	f.Add(true, append(holeChunk(0, 1, 512, 512), dataChunk(1, 1, 1024, make([]byte, 512))...))
	f.Add(true, errorChunk(1, chunkErrorOffset, 1, EIO, "x", make([]byte, 8)...))
	f.Add(true, binary.BigEndian.AppendUint32(nil, magicChunk))
	f.Fuzz(func(t *testing.T, shaken bool, input []byte) {
		ctx, cancel := context.WithTimeout(context.Background(), fuzzPatience)
		defer cancel()
		var running sync.WaitGroup
		defer running.Wait()
		if shaken {
			input = append(bytes.Clone(shake), input...)
		}
		dial := func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			running.Go(func() { io.Copy(io.Discard, theirs) })
			running.Go(func() {
				theirs.Write(input)
				theirs.Close()
			})
			return ours, nil
		}
		c, err := Dial(ctx, URI{}, Options{Contexts: usual.contexts, Attempts: 1, Dial: dial, Connections: 1})
		if err == nil {
			useAll(ctx, t, c)
			c.Close()
		}
		if ctx.Err() != nil {
			t.Error("the client hangs")
		}
	})
}

func useAll(ctx context.Context, t *testing.T, c *Client) {
	const off, length = 512, 1024
	if c.Size() < off+length || c.BlockSize().Min > 512 {
		return
	}
	var calls sync.WaitGroup
	calls.Go(func() { c.ReadAt(ctx, make([]byte, length), off) })
	calls.Go(func() { c.WriteAt(ctx, make([]byte, length), off, 0) })
	calls.Go(func() {
		found, err := c.Status(ctx, BaseAllocation, off, length)
		at := int64(off)
		for _, e := range found {
			if e.Off != at || e.Len <= 0 {
				t.Errorf("extents %v", found)
			}
			at = e.End()
		}
		if err == nil && at != off+length {
			t.Errorf("extents %v", found)
		}
	})
	calls.Wait()
}
