package qcow2_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"cairn/internal/qcow2"
)

// tired is a context that ends after some looks at it: a small file may claim
// to be as large as it likes, and a walk through it then takes its time.
type tired struct {
	context.Context
	looks int
}

func (c *tired) Err() error {
	if c.looks--; c.looks < 0 {
		return context.Canceled
	}
	return nil
}

// FuzzRead reads whatever calls itself an image.
func FuzzRead(f *testing.F) {
	for _, g := range goldens {
		if strings.HasPrefix(g.name, "tiny") {
			f.Add(g.file(f))
		}
	}
	f.Fuzz(readWild)
}

// FuzzTables reads QEMU's images with words of header and tables changed:
// which word, then its value, ten bytes a change.
func FuzzTables(f *testing.F) {
	files := make([][]byte, len(goldens))
	words := make([][]int, len(goldens))
	for i, g := range goldens {
		files[i] = g.file(f)
		words[i] = tableWords(files[i])
		for at := 4; at < 112; at += 4 {
			words[i] = append(words[i], at)
		}
		f.Add(uint8(i), []byte{0, 0, 0x80, 0, 0, 0, 0, 0, 0x10, 0})
		f.Add(uint8(i), []byte{0, 1, 0x40, 0, 0, 0, 0, 0, 0x30, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0xff})
	}
	f.Fuzz(func(t *testing.T, which uint8, changes []byte) {
		i := int(which) % len(files)
		file := bytes.Clone(files[i])
		for ; len(changes) >= 10; changes = changes[10:] {
			word := int(binary.BigEndian.Uint16(changes)) % len(words[i])
			copy(file[words[i][word]:], changes[2:10])
		}
		readWild(t, file)
	})
}

// readWild: whatever the file says, no panic, no range outside, no hole that
// is none, and the same answer when it is asked again.
func readWild(t *testing.T, file []byte) {
	r, err := qcow2.Open(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		return
	}
	ctx := &tired{context.Background(), 5000}
	var buf, again [20_000]byte
	for off := int64(0); ; {
		d, err := r.Data(ctx, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			d.Off = r.Size()
		} else if d.Off < off || d.Len <= 0 || d.Len > r.Size() || d.Off > r.Size()-d.Len {
			t.Fatalf("Data(%d) of %d bytes gave %d+%d", off, r.Size(), d.Off, d.Len)
		}
		hole := buf[:min(int64(len(buf)), d.Off-off)]
		if r.ReadAt(ctx, hole, off) != nil {
			return
		}
		if i := differs(hole, make([]byte, len(hole))); i >= 0 {
			t.Fatalf("Data tells of a hole at byte %d, which holds %#x", off+int64(i), hole[i])
		}
		if d.Len == 0 {
			return
		}
		n := min(int64(len(buf)), d.Len)
		if r.ReadAt(ctx, buf[:n], d.Off) != nil {
			return
		}
		if err := r.ReadAt(ctx, again[:n/2], d.Off+n-n/2); err != nil && ctx.looks >= 0 {
			t.Fatalf("read once, then: %v", err)
		} else if err == nil && !bytes.Equal(again[:n/2], buf[n-n/2:n]) {
			t.Fatal("read twice, it differs")
		}
		off = d.End()
	}
}
