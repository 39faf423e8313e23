package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"cairn/internal/errs"
	"cairn/internal/qcow2"
)

// goldenNamed is the file of a golden image, to be spoiled.
func goldenNamed(t testing.TB, name string) []byte {
	t.Helper()
	for _, g := range goldens {
		if g.name == name {
			return g.file(t)
		}
	}
	t.Fatalf("no golden image %s", name)
	return nil
}

// Each refusal has its sentence.
func TestHeadersRefused(t *testing.T) {
	be := binary.BigEndian
	put32 := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { be.PutUint32(b[at:], v); return b }
	}
	put64 := func(at int, v uint64) func([]byte) []byte {
		return func(b []byte) []byte { be.PutUint64(b[at:], v); return b }
	}
	tests := []struct {
		name  string
		image string // golden
		spoil func([]byte) []byte
		kind  errs.Kind
		want  string
	}{
		{"empty", "v3", func([]byte) []byte { return nil }, errs.Invalid, "this is no qcow2 image"},
		{"another mark", "v3", put32(0, 0x514649fc), errs.Invalid, "this is no qcow2 image"},
		{"only the mark", "v3", func(b []byte) []byte { return b[:8] }, errs.Corrupt, "the qcow2 file ends at byte 8, before the end of its header: it is cut, so get it whole"},
		{"version 2 cut", "v2", func(b []byte) []byte { return b[:71] }, errs.Corrupt, "ends at byte 71"},
		{"version 3 cut", "v3", func(b []byte) []byte { return b[:103] }, errs.Corrupt, "ends at byte 103"},
		{"version 1", "v3", put32(4, 1), errs.Invalid, "version 1 of the format, qcow; convert it first: qemu-img convert -f qcow"},
		{"version 4", "v3", put32(4, 4), errs.Invalid, "version 4 of the qcow2 format, and only 2 and 3 are known here; convert it first: qemu-img convert"},
		{"version 0", "v3", put32(4, 0), errs.Invalid, "version 0"},
		{"tiny clusters", "v3", put32(20, 8), errs.Corrupt, "2^8 bytes"},
		{"huge clusters", "v3", put32(20, 22), errs.Corrupt, "2^22 bytes"},
		{"absurd clusters", "v3", put32(20, 1<<31), errs.Corrupt, "2^2147483648 bytes"},
		{"AES", "v2", put32(32, 1), errs.Invalid, "the qcow2 image is encrypted; convert it first"},
		{"LUKS", "v3", put32(32, 2), errs.Invalid, "the qcow2 image is encrypted; convert it first"},
		{"backing file without a readable name", "v3", put64(8, 1<<63), errs.Invalid, "its backing file; bring them together first: qemu-img convert -O qcow2 FILE whole.qcow2"},
		{"corrupt bit", "v3", put64(72, 1<<1), errs.Corrupt, "marked as corrupt by the program that used it; repair a copy of it, then import that: qemu-img check -r all"},
		{"data file", "v3", put64(72, 1<<2), errs.Invalid, "the qcow2 image keeps its data in another file; bring them together first"},
		{"unknown features", "v3", put64(72, 1<<63|1<<40|1<<1), errs.Invalid, "needs what is not known here: the incompatible feature 40, the incompatible feature 63; convert it with a QEMU that knows"},
		{"short header", "v3", put32(100, 96), errs.Corrupt, "its header says that it has 96 bytes"},
		{"crooked header", "v3", put32(100, 107), errs.Corrupt, "its header says that it has 107 bytes"},
		{"endless header", "v3", put32(100, 1<<31), errs.Corrupt, "its header says that it has 2147483648 bytes"},
		{"zstd without the bit", "v3-zstd", put64(72, 0), errs.Corrupt, "contradicts itself about how clusters are compressed"},
		{"zlib with the bit", "v3", put64(72, 1<<3), errs.Corrupt, "contradicts itself about how clusters are compressed"},
		{"third compression", "v3-zstd", func(b []byte) []byte { b[104] = 2; return b }, errs.Invalid, "compressed by method 2"},
		{"subclusters below a sector", "v3", put64(72, 1<<4), errs.Corrupt, "too small for subclusters"},
		{"more than a table can map", "v3", put64(24, 1<<62), errs.TooLarge, "more than 137438953472"},
		{"negative size", "v3", put64(24, 1<<63), errs.TooLarge, "9223372036854775808 bytes"},
		{"L1 table too short", "v3", put32(36, 1), errs.Corrupt, "its L1 table has 1 entries, and its 150016 bytes need 5"},
		{"L1 table nowhere", "v3", put64(40, 0), errs.Corrupt, "L1 table cannot begin at byte 0"},
		{"L1 table askew", "v3", put64(40, 513), errs.Corrupt, "L1 table cannot begin at byte 513"},
		{"L1 table behind the end", "v3", put64(40, 1<<40), errs.Corrupt, "before the end of its L1 table"},
		{"L1 table at minus one", "v3", put64(40, 1<<64-512), errs.Corrupt, "before the end of its L1 table"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := tt.spoil(goldenNamed(t, tt.image))
			_, err := qcow2.Open(bytes.NewReader(b), int64(len(b)))
			if errs.KindOf(err) != tt.kind || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v (%v), want %v: %s", err, errs.KindOf(err), tt.kind, tt.want)
			}
		})
	}
}

// What QEMU itself makes and we refuse.
func TestQEMUsRefused(t *testing.T) {
	q := newQEMU(t)
	q.file("secret", []byte("secret"))
	q.img("create", "-q", "-f", "raw", q.path("base.raw"), "1M")
	q.img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", q.path("backed.qcow2"))
	q.img("create", "-q", "-f", "qcow2", "-o", "data_file=outer.raw", q.path("outer.qcow2"), "1M")
	// Not LUKS: it measures the processor first, and fails when that is busy.
	q.img("create", "-q", "-f", "qcow2", "--object", "secret,id=s,file=secret", "-o", "encrypt.format=aes,encrypt.key-secret=s", q.path("secret.qcow2"), "1M")
	q.img("create", "-q", "-f", "qcow", q.path("old.qcow2"), "1M")
	q.img("create", "-q", "-f", "qcow2", q.path("named.qcow2"), "1M")
	for image, want := range map[string]string{
		"backed.qcow2": `holds only what differs from its backing file "base.raw"; bring them together first: qemu-img convert -O qcow2 FILE whole.qcow2`,
		"outer.qcow2":  `keeps its data in another file "outer.raw"; bring them together first`,
		"secret.qcow2": "is encrypted; convert it first, with its secret",
		"old.qcow2":    "version 1 of the format",
	} {
		if _, err := q.open(image); errs.KindOf(err) != errs.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", image, err, want)
		}
	}
	// The commands that the sentences tell do what they say.
	q.img("convert", "-O", "qcow2", q.path("backed.qcow2"), q.path("whole.qcow2"))
	q.compare("whole.qcow2")
	q.img("convert", "-O", "qcow2", q.path("outer.qcow2"), q.path("whole.qcow2"))
	q.compare("whole.qcow2")
	q.img("convert", "-f", "qcow", "-O", "raw", q.path("old.qcow2"), q.path("disk.raw"))
	q.img("convert", "--object", "secret,id=s,file=secret", "--image-opts", "driver=qcow2,encrypt.key-secret=s,file.filename=secret.qcow2", "-O", "raw", q.path("disk.raw"))
}

// A feature that the file has a name for is refused by that name.
func TestFeatureName(t *testing.T) {
	b := goldenNamed(t, "v3-zlib")
	at := bytes.Index(b, []byte("dirty bit"))
	if at < 0 {
		t.Fatal("the image has no table of names")
	}
	b[at-1] = 21
	copy(b[at:], "holo\x1bgram\x00")
	binary.BigEndian.PutUint64(b[72:], 1<<21)
	_, err := qcow2.Open(bytes.NewReader(b), int64(len(b)))
	if errs.KindOf(err) != errs.Invalid || !strings.Contains(err.Error(), `the feature "holo\x1bgram";`) {
		t.Error(err)
	}
}

// Every extension that is cut, endless or missing leaves the refusal as it is.
func TestSpoiltExtensions(t *testing.T) {
	b := goldenNamed(t, "v3-zlib")
	binary.BigEndian.PutUint64(b[72:], 1<<21)
	for n := 104; n < 700; n++ {
		for _, v := range []uint32{0, 1, 1<<31 - 1, 1<<32 - 1} {
			c := bytes.Clone(b)
			binary.BigEndian.PutUint32(c[n:], v)
			if n >= 108 { // the length of the header stands before
				if _, err := qcow2.Open(bytes.NewReader(c), int64(len(c))); errs.KindOf(err) != errs.Invalid {
					t.Fatalf("%#x at %d: %v", v, n, err)
				}
			}
		}
		if _, err := qcow2.Open(bytes.NewReader(b[:n]), int64(n)); errs.KindOf(err) != errs.Invalid {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
}

// tableWords is where the words of the L1 table and of the L2 tables lie that
// the content of a valid image is found by.
func tableWords(file []byte) []int {
	be := binary.BigEndian
	clusterBits := be.Uint32(file[20:])
	entry := 8
	if be.Uint32(file[4:]) == 3 && be.Uint64(file[72:])>>4&1 == 1 {
		entry = 16
	}
	perTable := 1 << clusterBits / entry
	clusters := (int(be.Uint64(file[24:])) + 1<<clusterBits - 1) >> clusterBits
	var words []int
	l1 := int(be.Uint64(file[40:]))
	for i := 0; i*perTable < clusters; i++ {
		words = append(words, l1+i*8)
		l2 := int(be.Uint64(file[l1+i*8:]) & (1<<56 - 512))
		if l2 == 0 {
			continue
		}
		for at := range min(perTable, clusters-i*perTable) * entry / 8 {
			words = append(words, l2+at*8)
		}
	}
	return words
}

// Tables that cannot be are refused when they are used.
func TestTablesRefused(t *testing.T) {
	const flag = 1 << 63
	tests := []struct {
		name  string
		image string
		word  int // of tableWords; 0 is the first L1 entry, 1 the first of its L2 table
		value uint64
		want  string
	}{
		{"L1 entry with reserved bits", "v2", 0, flag | 0x5000 | 1, "the L1 entry for byte 0 is 0x8000000000005001, which sets reserved bits"},
		{"L1 entry with high reserved bits", "v2", 0, flag | 1<<57 | 0x5000, "which sets reserved bits"},
		{"L2 table askew", "v2", 0, flag | 0x5200, "the L2 table for byte 0 cannot begin at byte 20992"},
		{"L2 table behind the end", "v2", 0, flag | 1<<50, "before one of its tables, at byte 1125899906842624: it is cut"},
		{"L2 entry with reserved bits", "v3", 2, flag | 0x800 | 2, "the L2 entry for byte 512 is 0x8000000000000802, which sets reserved bits"},
		{"L2 entry with high reserved bits", "v3", 2, flag | 1<<60 | 0x800, "which sets reserved bits"},
		{"zero flag in version 2", "v2", 1, flag | 0x6000 | 1, "which sets reserved bits"},
		{"zero flag with subclusters", "v3-subclusters", 1, flag | 0x14000 | 1, "which sets reserved bits"},
		{"cluster askew", "v2", 1, flag | 0x6200, "the cluster for byte 0 cannot begin at byte 25088"},
		{"cluster behind the end", "v2", 1, flag | 1<<40, "before byte 0 of its content, which lies at byte 1099511627776: it is cut"},
		{"compressed cluster behind the end", "v2-zlib", 1, 1<<62 | 1<<40, "before byte 0 of its content, which lies at byte 1099511627776: it is cut"},
		{"compressed cluster that is none", "v2-zlib", 1, 1<<62 | 1<<60 | 0x40, "the compressed cluster at byte 64 does not unpack to 1024 bytes"},
		{"zstd cluster that is none", "v3-zstd", 1, 1<<62 | 1<<60 | 0x40, "the compressed cluster at byte 64 does not unpack to 4096 bytes"},
		{"subclusters both full and zero", "v3-subclusters", 2, 1<<32 | 1, "the subclusters for byte 0 contradict themselves: 0x100000001"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := goldenNamed(t, tt.image)
			binary.BigEndian.PutUint64(b[tableWords(b)[tt.word]:], tt.value)
			r := openBytes(t, b)
			_, err := whole(t.Context(), r, 512)
			if errs.KindOf(err) != errs.Corrupt || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v (%v), want %s", err, errs.KindOf(err), tt.want)
			}
		})
	}
	t.Run("subclusters without a cluster", func(t *testing.T) {
		b := goldenNamed(t, "v3-subclusters")
		clear(b[tableWords(b)[1]:][:8])
		if _, err := whole(t.Context(), openBytes(t, b), 512); errs.KindOf(err) != errs.Corrupt {
			t.Error(err)
		}
	})
}

// A frame that wants a gigabyte remembered is refused before it gets it.
func TestWideWindow(t *testing.T) {
	b := goldenNamed(t, "v3-zstd")
	words := tableWords(b)
	var at uint64 // of the first compressed cluster
	for _, w := range words[1:] {
		if e := binary.BigEndian.Uint64(b[w:]); e>>62&1 == 1 {
			at = e & (1<<58 - 1)
			break
		}
	}
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 20 << 3} // a window of 1<<(10+20)
	frame = append(frame, 0x03, 0x80, 0)                // a block, the last: a byte 4096 times
	frame = append(frame, 7)
	if !bytes.Equal(b[at:at+4], frame[:4]) {
		t.Fatalf("no frame at byte %d", at)
	}
	for window, ok := range map[byte]bool{20 << 3: false, 13<<3 | 1: false, 13 << 3: true} {
		frame[5] = window
		copy(b[at:], frame)
		_, err := whole(t.Context(), openBytes(t, b), 512)
		if ok != (err == nil) || !ok && (errs.KindOf(err) != errs.Corrupt || !errors.Is(err, zstd.ErrWindowSizeExceeded)) {
			t.Errorf("a window of %#x: %v", window, err)
		}
	}
}

// A damaged stream of a compressed cluster is found out or unpacks to
// something; it never panics and never gives less than a cluster.
func TestSpoiltStreams(t *testing.T) {
	for _, name := range []string{"v2-zlib", "v3-zlib", "v3-zstd", "v3-subclusters-zstd"} {
		b := goldenNamed(t, name)
		for at := len(b) / 2; at < len(b); at += 331 {
			c := bytes.Clone(b)
			c[at] ^= 0x41
			if _, err := whole(t.Context(), openBytes(t, c), 4096); err != nil && errs.KindOf(err) != errs.Corrupt {
				t.Fatalf("%s, byte %d: %v", name, at, err)
			}
		}
	}
}

func TestIs(t *testing.T) {
	for head, want := range map[string]bool{"QFI\xfb": true, "QFI\xfb\x00": true, "QFI": false, "": false, "QFI\xfa": false} {
		if qcow2.Is([]byte(head)) != want {
			t.Errorf("Is(%q) = %v", head, !want)
		}
	}
	if _, err := qcow2.Open(bytes.NewReader(nil), -1); err == nil || err == io.EOF {
		t.Errorf("a negative length: %v", err)
	}
}
