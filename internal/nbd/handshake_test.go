package nbd

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"cairn/internal/errs"
)

func TestOptions(t *testing.T) {
	s := serve(t, Limits{})
	cfg := everything("v", 1<<20)
	cfg.Description = "a volume"
	cfg.Contexts = append(cfg.Contexts, "cairn:dirty", "cairn:other")
	s.add(cfg, newMemory(1<<20))
	s.add(ExportConfig{Name: "ro", Size: 4096, ReadOnly: true, BlockSize: BlockSize{Min: 512}}, newMemory(4096))
	r := s.shaken()

	r.ask(optStartTLS, nil, repErrPolicy)
	r.ask(11, nil, repErrUnsup) // extended headers
	r.ask(99, []byte("what"), repErrUnsup)
	list := r.ask(optList, nil, repServer, repServer, repAck)
	if list[0].data != "\x00\x00\x00\x02ro" || list[1].data != "\x00\x00\x00\x01va volume" {
		t.Errorf("list %+v", list)
	}
	r.ask(optList, []byte("x"), repErrInvalid)

	// Contexts come after structured replies.
	r.ask(optSetMetaContext, queriesData("v", BaseAllocation), repErrInvalid)
	r.ask(optListMetaContext, queriesData("v"), repErrInvalid)
	r.ask(optStructuredReply, []byte("x"), repErrInvalid)
	r.ask(optStructuredReply, nil, repAck)
	r.ask(optListMetaContext, queriesData("v"), repMetaContext, repMetaContext, repMetaContext, repAck)
	r.ask(optListMetaContext, queriesData("v", "cairn:"), repMetaContext, repMetaContext, repAck)
	r.ask(optListMetaContext, queriesData("v", "cairn:none", "base:allocation"), repMetaContext, repAck)
	r.ask(optListMetaContext, queriesData("nobody"), repErrUnknown)
	r.ask(optSetMetaContext, queriesData("nobody", BaseAllocation), repErrUnknown)
	r.ask(optSetMetaContext, queriesData("v", "cairn:"), repAck) // no wildcard when setting
	r.ask(optSetMetaContext, queriesData("v"), repAck)
	got := r.ask(optSetMetaContext, queriesData("v", "cairn:other", BaseAllocation, "x-y:z"), repMetaContext, repMetaContext, repAck)
	if got[0].data != "\x00\x00\x00\x00base:allocation" || got[1].data != "\x00\x00\x00\x01cairn:other" {
		t.Errorf("contexts %+v", got)
	}
	for _, bad := range [][]byte{nil, []byte("\x00\x00\x00\x09v"), queriesData("v", "a")[:10], append(queriesData("v", "a"), 0), []byte("\x00\x00\x00\x01v\xff\xff\xff\xff")} {
		r.ask(optSetMetaContext, bad, repErrInvalid)
	}

	r.ask(optInfo, infoData("nobody"), repErrUnknown)
	r.ask(optGo, infoData("nobody"), repErrUnknown)
	for _, bad := range [][]byte{nil, []byte("\x00\x00\x00\x09v"), infoData("v")[:5], append(infoData("v"), 0)} {
		r.ask(optInfo, bad, repErrInvalid)
	}
	r.ask(optInfo, infoData("ro"), repErrBlockSizeReqd)
	r.ask(optGo, infoData("ro", infoName), repErrBlockSizeReqd)
	checkInfo(t, r.ask(optInfo, infoData("v", infoName, infoDescription, 77), repInfo, repInfo, repInfo, repInfo, repAck))
	r.ask(optInfo, infoData("ro", infoBlockSize, infoDescription), repInfo, repInfo, repAck)
	r.ask(optAbort, nil, repAck)
	r.ended()
}

func checkInfo(t *testing.T, got []optReply) {
	t.Helper()
	flags := uint16(flagHasFlags | flagFlush | flagFUA | flagTrim | flagWriteZeroes | flagDF | flagMultiConn | flagCache | flagFastZero)
	want := map[uint16]string{
		infoExport:      string(binary.BigEndian.AppendUint16([]byte("\x00\x00\x00\x00\x00\x10\x00\x00"), flags)),
		infoBlockSize:   "\x00\x00\x00\x01\x00\x00\x10\x00\x02\x00\x00\x00",
		infoName:        "v",
		infoDescription: "a volume",
	}
	for _, g := range got[:len(got)-1] {
		kind := binary.BigEndian.Uint16([]byte(g.data))
		if g.data[2:] != want[kind] {
			t.Errorf("information %d is %x, want %x", kind, g.data[2:], want[kind])
		}
	}
}

// What kind of client attaches, and what it may do then.
func TestAttach(t *testing.T) {
	s := serve(t, Limits{})
	s.add(everything("v", 1<<20), newMemory(1<<20))
	s.add(everything("w", 1<<20), newMemory(1<<20))

	t.Run("EXPORT_NAME", func(t *testing.T) {
		r := s.shaken()
		r.write(option(optExportName, []byte("v")))
		if b := r.read(exportReplyLen); binary.BigEndian.Uint64(b) != 1<<20 || binary.BigEndian.Uint16(b[8:])&flagDF != 0 {
			t.Errorf("answer %x", b)
		}
		r.do(0, cmdFlush, 0, 0, 0)
	})
	t.Run("EXPORT_NAME with padding", func(t *testing.T) {
		r := s.raw()
		r.read(helloLen)
		r.write([]byte{0, 0, 0, 1})
		r.write(option(optExportName, []byte("v")))
		r.read(exportReplyLen + exportPadding)
		r.do(0, cmdFlush, 0, 0, 0)
	})
	t.Run("EXPORT_NAME unknown", func(t *testing.T) {
		r := s.shaken()
		r.write(option(optExportName, []byte("nobody")))
		r.ended()
	})
	t.Run("EXPORT_NAME suspended", func(t *testing.T) {
		e := s.add(everything("busy", 4096), newMemory(4096))
		if _, err := e.Suspend(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		r := s.shaken()
		r.write(option(optExportName, []byte("busy")))
		r.ended()
	})
	t.Run("contexts of another export are void", func(t *testing.T) {
		r := s.shaken()
		r.ask(optStructuredReply, nil, repAck)
		r.ask(optSetMetaContext, queriesData("v", BaseAllocation), repMetaContext, repAck)
		r.ask(optGo, infoData("w"), repInfo, repInfo, repAck)
		r.do(EINVAL, cmdBlockStatus, 0, 0, 4096)
	})
	t.Run("contexts that were set again", func(t *testing.T) {
		r := s.shaken()
		r.ask(optStructuredReply, nil, repAck)
		r.ask(optSetMetaContext, queriesData("v", BaseAllocation), repMetaContext, repAck)
		r.ask(optSetMetaContext, queriesData("v", "no:such"), repAck)
		r.ask(optGo, infoData("v"), repInfo, repInfo, repAck)
		r.do(EINVAL, cmdBlockStatus, 0, 0, 4096)
	})
	t.Run("GO after a refused GO", func(t *testing.T) {
		r := s.shaken()
		r.ask(optGo, infoData("nobody"), repErrUnknown)
		r.ask(optGo, infoData("v"), repInfo, repInfo, repAck)
		r.do(0, cmdFlush, 0, 0, 0)
	})
	t.Run("no default export", func(t *testing.T) {
		s.shaken().ask(optGo, infoData(""), repErrUnknown)
	})
}

// What ends the connection of a client in its handshake.
func TestHandshakeEnds(t *testing.T) {
	limits := Limits{Options: 5, OptionBytes: 1000, Handshake: 300 * time.Millisecond}
	s := serve(t, limits)
	s.add(everything("v", 1<<20), newMemory(1<<20))
	hello := []byte{0, 0, 0, 3}
	tests := map[string][]byte{
		"silence":            nil,
		"unknown flags":      {0, 0, 0, 7},
		"wrong magic":        append(hello, "GET / HTTP/1.1\r\n\r\n"...),
		"half an option":     append(hello, option(optList, nil)[:12]...),
		"silence after that": hello,
		"huge option":        append(hello, binary.BigEndian.AppendUint32(option(optList, nil)[:12], 1<<31)...),
		"long export name":   append(hello, option(optExportName, make([]byte, 1001))...),
		"data left out":      append(hello, option(optGo, infoData("v"))[:20]...),
	}
	for name, bytes := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := s.raw()
			r.read(helloLen)
			r.write(bytes)
			r.ended()
		})
	}
	t.Run("too many options", func(t *testing.T) {
		t.Parallel()
		r := s.shaken()
		for range limits.Options {
			r.ask(optStructuredReply, nil, repAck)
		}
		r.ended()
	})
	t.Run("an option too long is skipped", func(t *testing.T) {
		t.Parallel()
		r := s.shaken()
		r.ask(optInfo, make([]byte, 1001), repErrTooBig)
		r.ask(optGo, infoData("v"), repInfo, repInfo, repAck)
	})
	t.Run("a client that is attached may be silent", func(t *testing.T) {
		t.Parallel()
		r := s.attached("v", false)
		time.Sleep(2 * limits.Handshake)
		r.do(0, cmdFlush, 0, 0, 0)
	})
}

func TestExportConfig(t *testing.T) {
	s := NewServer(Limits{}, nil)
	long := strings.Repeat("x", maxStringLen+1)
	bad := map[string]ExportConfig{
		"name too long":        {Name: long},
		"name with NUL":        {Name: "a\x00"},
		"name not UTF-8":       {Name: "\xff"},
		"description too long": {Name: "a", Description: long},
		"negative size":        {Name: "a", Size: -1},
		"size not aligned":     {Name: "a", Size: 1000, BlockSize: BlockSize{Min: 512}},
		"minimum odd":          {Name: "a", BlockSize: BlockSize{Min: 3}},
		"minimum too large":    {Name: "a", BlockSize: BlockSize{Min: 128 << 10}},
		"preferred odd":        {Name: "a", BlockSize: BlockSize{Preferred: 5000}},
		"preferred small":      {Name: "a", BlockSize: BlockSize{Preferred: 256}},
		"maximum too large":    {Name: "a", BlockSize: BlockSize{Max: 64 << 20}},
		"maximum too small":    {Name: "a", BlockSize: BlockSize{Max: 1024}},
		"maximum not aligned":  {Name: "a", BlockSize: BlockSize{Min: 4096, Max: 1<<20 + 1}},
		"too many contexts":    {Name: "a", Contexts: make([]string, maxContexts+1)},
		"context without name": {Name: "a", Contexts: []string{"allocation"}},
	}
	for name, cfg := range bad {
		if _, err := s.Add(cfg, newMemory(4096)); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	e, err := s.Add(ExportConfig{Name: "a", Size: 512, BlockSize: BlockSize{Min: 512}}, newMemory(4096))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Add(ExportConfig{Name: "a"}, newMemory(4096)); !errs.Is(err, errs.Exists) {
		t.Errorf("the name again: %v", err)
	}
	if err := e.SetSize(513); !errs.Is(err, errs.Invalid) {
		t.Errorf("odd size: %v", err)
	}
}
