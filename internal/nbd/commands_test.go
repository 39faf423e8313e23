package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"

	"cairn/internal/errs"
)

const exportSize = 1 << 20

// Every command with what it may not be: one table, both forms of replies.
func TestRefusedCommands(t *testing.T) {
	s := serve(t, Limits{})
	m := newMemory(exportSize)
	s.add(everything("v", exportSize), m)
	plain := ExportConfig{Name: "plain", Size: exportSize}
	s.add(plain, m)
	ro := everything("ro", exportSize)
	ro.ReadOnly = true
	s.add(ro, m)
	aligned := everything("aligned", exportSize)
	aligned.BlockSize = BlockSize{Min: 4096, Preferred: 4096, Max: 64 << 10}
	s.add(aligned, m)

	const end = exportSize
	tests := []struct {
		export     string
		want       Errno
		cmd, flags uint16
		off        uint64
		length     uint32
	}{
		{"v", EINVAL, cmdRead, 0, end - 1, 2},
		{"v", EINVAL, cmdRead, 0, 1 << 63, 1},
		{"v", EINVAL, cmdRead, 0, 0, defaultMaxBlock + 1},
		{"v", EINVAL, cmdRead, cmdFlagNoHole, 0, 1},
		{"v", ENOSPC, cmdWrite, 0, end - 1, 2},
		{"v", ENOSPC, cmdWrite, 0, 1<<64 - 1, 1},
		{"v", EINVAL, cmdWrite, 0, 0, defaultMaxBlock + 1},
		{"v", EINVAL, cmdWrite, cmdFlagDF, 0, 4},
		{"v", EINVAL, cmdTrim, 0, end, 1},
		{"v", EINVAL, cmdTrim, cmdFlagReqOne, 0, 1},
		{"v", ENOSPC, cmdWriteZeroes, 0, end, 1},
		{"v", EINVAL, cmdWriteZeroes, cmdFlagDF, 0, 1},
		{"v", EINVAL, cmdCache, 0, end, 1},
		{"v", EINVAL, cmdBlockStatus, 0, end, 1},
		{"v", EINVAL, cmdBlockStatus, 0, 0, 0},
		{"v", EINVAL, cmdFlush, cmdFlagNoHole, 0, 0},
		{"v", EINVAL, 8, 0, 0, 0}, // resize
		{"v", EINVAL, 4242, 0xffff, 1 << 60, 1 << 30},
		{"plain", EINVAL, cmdTrim, 0, 0, 1},
		{"plain", EINVAL, cmdWriteZeroes, 0, 0, 1},
		{"plain", EINVAL, cmdCache, 0, 0, 1},
		{"plain", EINVAL, cmdBlockStatus, 0, 0, 1},
		{"ro", EPERM, cmdWrite, 0, 0, 4},
		{"ro", EPERM, cmdWrite, cmdFlagFUA, end, 4},
		{"ro", EPERM, cmdTrim, 0, 0, 4},
		{"ro", EPERM, cmdWriteZeroes, 0, 0, 4},
		{"aligned", EINVAL, cmdRead, 0, 1, 4096},
		{"aligned", EINVAL, cmdRead, 0, 0, 4097},
		{"aligned", EINVAL, cmdRead, 0, 0, 64<<10 + 4096},
		{"aligned", EINVAL, cmdWrite, 0, 512, 4096},
		{"aligned", EINVAL, cmdTrim, 0, 512, 4096},
		{"aligned", EINVAL, cmdBlockStatus, 0, 0, 512},
	}
	for _, structured := range []bool{false, true} {
		conns := map[string]*raw{}
		for _, tt := range tests {
			if conns[tt.export] == nil {
				conns[tt.export] = s.attached(tt.export, structured)
			}
			r := conns[tt.export]
			var payload []byte
			if tt.cmd == cmdWrite {
				payload = make([]byte, tt.length)
			}
			calls := m.calls.Load()
			a := r.do(tt.want, tt.cmd, tt.flags, tt.off, tt.length, payload...)
			if a.simple == structured {
				t.Errorf("%+v: simple reply %v", tt, a.simple)
			}
			if m.calls.Load() != calls {
				t.Errorf("%+v reached the backend", tt)
			}
			// The connection lives, and its stream is in step.
			r.do(0, cmdFlush, 0, 7, 0)
		}
	}
	r := s.attached("v", false)
	r.do(EINVAL, cmdRead, cmdFlagDF, 0, 4) // needs structured replies
	r.do(EINVAL, cmdBlockStatus, 0, 0, 4)
	none := everything("none", exportSize)
	none.CanFastZero = false
	s.add(none, m)
	s.attached("none", true).do(EINVAL, cmdWriteZeroes, cmdFlagFastZero, 0, 4)
}

func TestCommands(t *testing.T) {
	s := serve(t, Limits{})
	m := newMemory(exportSize)
	s.add(everything("v", exportSize), m)
	for _, structured := range []bool{false, true} {
		r := s.attached("v", structured)
		data := bytes.Repeat([]byte{1, 2, 3, 4}, 1024)
		r.do(0, cmdWrite, cmdFlagFUA, 100, 4096, data...)
		if Flags(m.flags.Load()) != FUA || !bytes.Equal(m.bytes(100, 4096), data) {
			t.Error("the write did not arrive")
		}
		r.do(0, cmdWriteZeroes, cmdFlagNoHole|cmdFlagFastZero, 200, 1000)
		if Flags(m.flags.Load()) != NoHole|FastZero || m.bytes(200, 1)[0] != 0 || m.bytes(1200, 1)[0] == 0 {
			t.Error("the zeroes did not arrive")
		}
		r.do(0, cmdTrim, cmdFlagFUA, 0, 8192)
		if Flags(m.flags.Load()) != FUA {
			t.Error("the trim did not arrive")
		}
		flushes := m.flushes.Load()
		r.do(0, cmdFlush, 0, 0, 0)
		if m.flushes.Load() != flushes+1 {
			t.Error("the flush did not arrive")
		}
		r.do(0, cmdCache, 0, 0, exportSize)
		r.do(0, cmdWrite, 0, exportSize, 0)
		r.do(0, cmdTrim, 0, 0, 0)
		r.do(0, cmdWriteZeroes, 0, 0, 1<<20)
		if a := r.do(0, cmdRead, 0, 5, 0); len(a.data) != 0 {
			t.Errorf("a read of nothing: %+v", a)
		}
		r.send(cmdDisconnect, 0, 0, 0)
		r.ended()
	}
}

// The chunks of reads: data, holes, don't-fragment.
func TestReadChunks(t *testing.T) {
	s := serve(t, Limits{})
	const size = 8 << 20
	m := newMemory(size)
	for i := range m.data {
		m.data[i] = byte(i / 512)
	}
	clear(m.holes)
	m.zero(64<<10, 128<<10, 0)
	m.zero(4<<20, 4096, 0)
	s.add(everything("v", size), m)

	r := s.attached("v", false)
	r.send(cmdRead, 0, 60<<10, 1<<20)
	if a := r.answer(); a.code != 0 || !a.simple || !bytes.Equal(r.read(1<<20), m.data[60<<10:60<<10+1<<20]) {
		t.Errorf("simple read: %+v", a)
	}

	r = s.attached("v", true)
	if a := r.do(0, cmdRead, cmdFlagDF, 60<<10, 3<<20); a.kind != chunkData || !bytes.Equal(a.data[8:], m.data[60<<10:60<<10+3<<20]) {
		t.Errorf("DF: kind %d, %d bytes", a.kind, a.length)
	}
	if a := r.do(0, cmdRead, 0, 96<<10, 4096); a.kind != chunkData {
		t.Errorf("a small read of a hole: %+v", a)
	}
	if a := r.do(0, cmdRead, 0, 96<<10, 64<<10); a.kind != chunkHole || binary.BigEndian.Uint32(a.data[8:]) != 64<<10 {
		t.Errorf("a read of a hole: %+v", a)
	}
	r.send(cmdRead, 0, 0, size)
	got := make([]byte, size)
	var kinds []uint16
	for last := false; !last; {
		a := r.answer()
		off := binary.BigEndian.Uint64(a.data)
		if a.kind == chunkData {
			copy(got[off:], a.data[8:])
		}
		kinds = append(kinds, a.kind)
		last = a.flags&chunkFlagDone != 0
	}
	if !bytes.Equal(got, m.data) {
		t.Error("other bytes")
	}
	const d, h = chunkData, chunkHole
	if want := []uint16{d, h, d, d, d, d, h, d, d, d, d}; fmt.Sprint(kinds) != fmt.Sprint(want) {
		t.Errorf("kinds %v, want %v", kinds, want)
	}
}

func TestBlockStatus(t *testing.T) {
	s := serve(t, Limits{})
	m := newMemory(exportSize)
	m.WriteAt(t.Context(), make([]byte, 8192), 4096, 0)
	s.add(everything("v", exportSize), m)
	r := s.attached("v", true)
	status := func(flags uint16, off uint64, length uint32) []uint32 {
		t.Helper()
		a := r.do(0, cmdBlockStatus, flags, off, length)
		if a.kind != chunkBlockStatus || binary.BigEndian.Uint32(a.data) != 0 {
			t.Fatalf("answer %+v", a)
		}
		var all []uint32
		for b := a.data[4:]; len(b) > 0; b = b[4:] {
			all = append(all, binary.BigEndian.Uint32(b))
		}
		return all
	}
	for _, tt := range []struct {
		flags  uint16
		off    uint64
		length uint32
		want   []uint32
	}{
		{0, 0, exportSize, []uint32{4096, 3, 8192, 0, exportSize - 12288, 3}},
		{cmdFlagReqOne, 0, exportSize, []uint32{4096, 3}},
		{cmdFlagReqOne, 5000, 100, []uint32{100, 0}},
		{0, 4095, 2, []uint32{1, 3, 1, 0}},
	} {
		if got := status(tt.flags, tt.off, tt.length); fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// badStatus answers what its contract forbids.
type badStatus struct {
	*memory
	answer atomic.Pointer[[]Extent]
}

func (b *badStatus) Status(context.Context, []Extent, string, int64, int64, int) ([]Extent, error) {
	return *b.answer.Load(), nil
}

func TestBadStatusOfBackend(t *testing.T) {
	s := serve(t, Limits{})
	b := &badStatus{memory: newMemory(exportSize)}
	s.add(everything("v", exportSize), b)
	for _, bad := range [][]Extent{nil, {{Off: 1, Len: 4096}}, {{Off: 0, Len: 0}}, {{Off: 0, Len: 4096}, {Off: 8192, Len: 1}}} {
		b.answer.Store(&bad)
		r := s.attached("v", true)
		r.do(EIO, cmdBlockStatus, 0, 0, exportSize)
		if a := r.do(0, cmdRead, 0, 0, 128<<10); a.kind != chunkData {
			t.Errorf("%v: a read is %+v", bad, a)
		}
	}
}

func TestErrnos(t *testing.T) {
	tests := []struct {
		err  error
		want Errno
	}{
		{errors.New("what"), EIO},
		{fmt.Errorf("wrapped: %w", ENOTSUP), ENOTSUP},
		{errs.Wrap(errs.Internal, EOVERFLOW, "x"), EOVERFLOW},
		{context.Canceled, ESHUTDOWN},
		{context.DeadlineExceeded, ESHUTDOWN},
		{syscall.EROFS, EPERM},
		{syscall.EACCES, EPERM},
		{fmt.Errorf("write: %w", syscall.ENOSPC), ENOSPC},
		{syscall.EDQUOT, ENOSPC},
		{syscall.EFBIG, ENOSPC},
		{syscall.ENOMEM, ENOMEM},
		{syscall.EINVAL, EINVAL},
		{syscall.EOPNOTSUPP, ENOTSUP},
		{syscall.ESHUTDOWN, ESHUTDOWN},
		{syscall.EBADF, EIO},
		{errs.New(errs.Full, "full"), ENOSPC},
		{errs.New(errs.Denied, "no"), EPERM},
		{errs.New(errs.Invalid, "no"), EINVAL},
		{errs.New(errs.Corrupt, "no"), EIO},
		{errs.New(errs.Unavailable, "no"), EIO},
	}
	s := serve(t, Limits{})
	m := newMemory(exportSize)
	s.add(everything("v", exportSize), m)
	plain, structured := s.attached("v", false), s.attached("v", true)
	for _, tt := range tests {
		m.onCall(func(context.Context, string, int64, int64) error { return tt.err })
		for _, r := range []*raw{plain, structured} {
			for _, cmd := range []uint16{cmdRead, cmdFlush, cmdTrim, cmdWriteZeroes, cmdCache} {
				r.do(tt.want, cmd, 0, 0, 4096)
			}
			r.do(tt.want, cmdWrite, 0, 0, 4, 1, 2, 3, 4)
		}
		structured.do(tt.want, cmdBlockStatus, 0, 0, 4096)
	}
	// Only sentences that were written for users leave the server.
	m.onCall(func(context.Context, string, int64, int64) error { return errors.New("/a/secret/path") })
	if a := structured.do(EIO, cmdRead, 0, 0, 512); bytes.Contains(a.data, []byte("secret")) {
		t.Errorf("the client learns %q", a.data)
	}
	m.onCall(func(context.Context, string, int64, int64) error { return errs.New(errs.Full, "the disk is full") })
	if a := structured.do(ENOSPC, cmdRead, 0, 0, 512); !bytes.Contains(a.data, []byte("the disk is full")) {
		t.Errorf("the client learns %q", a.data)
	}
	if Errno(9999).Error() == "" || EIO.Error() == "" {
		t.Error("errors without texts")
	}
}

// A read that fails after its first bytes left says so by an error chunk.
func TestLateReadError(t *testing.T) {
	s := serve(t, Limits{})
	m := newMemory(8 << 20)
	clear(m.holes)
	m.onCall(func(_ context.Context, what string, off, _ int64) error {
		if what == "read" && off >= 2<<20 {
			return EIO
		}
		return nil
	})
	s.add(everything("v", 8<<20), m)
	r := s.attached("v", true)
	r.send(cmdRead, 0, 0, 8<<20)
	for range 2 {
		if a := r.answer(); a.kind != chunkData || a.flags != 0 {
			t.Fatalf("answer %d, flags %d", a.kind, a.flags)
		}
	}
	if a := r.answer(); a.code != EIO || a.flags != chunkFlagDone {
		t.Fatalf("answer %+v", a)
	}
	r.do(0, cmdFlush, 0, 0, 0)
}
