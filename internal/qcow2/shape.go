package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"cairn/internal/errs"
)

const (
	minClusterBits = 9
	maxClusterBits = 21

	maxBackingName = 1023     // by the format
	maxExtensions  = 64 << 10 // of the header; QEMU writes some hundred bytes
)

// shape is how a file is laid out, by its header.
type shape struct {
	version     uint32
	clusterBits uint
	extended    bool // L2 entries have subclusters
	zstd        bool // else zlib
	size        int64
	l1At        int64
	snapshots   int
}

func (s *shape) entryBytes() int64 {
	if s.extended {
		return 16
	}
	return 8
}

// l2Bits is the binary logarithm of the number of entries in an L2 table.
func (s *shape) l2Bits() uint {
	if s.extended {
		return s.clusterBits - 4
	}
	return s.clusterBits - 3
}

// head is the header as it lies in the file, for as long as it is judged.
type head struct {
	r      io.ReaderAt
	length int64 // of the file
	b      []byte
}

func (h *head) u32(at int) uint32 { return binary.BigEndian.Uint32(h.b[at:]) }
func (h *head) u64(at int) uint64 { return binary.BigEndian.Uint64(h.b[at:]) }

// readShape judges the header of a file of length bytes.
func readShape(r io.ReaderAt, length int64) (*shape, error) {
	h := &head{r: r, length: length, b: make([]byte, min(max(length, 0), atCompression+8))}
	if err := readFull(r, h.b, 0); err != nil {
		return nil, err
	}
	if len(h.b) < atVersion+4 || h.u32(atMagic) != magic {
		return nil, errs.New(errs.Invalid, "this is no qcow2 image: it does not begin as one does")
	}
	s := &shape{version: h.u32(atVersion)}
	least := headerLen
	switch s.version {
	case 1:
		return nil, errs.New(errs.Invalid, "the image is of version 1 of the format, qcow; convert it first: qemu-img convert -f qcow -O raw FILE disk.raw")
	case 2:
		least = atIncompatible
	case 3:
	default:
		return nil, errs.New(errs.Invalid, "the image is of version %d of the qcow2 format, and only 2 and 3 are known here; convert it first: qemu-img convert -O raw FILE disk.raw", s.version)
	}
	if len(h.b) < least {
		return nil, cut(length, "the end of its header")
	}
	bits := h.u32(atClusterBits)
	if bits < minClusterBits || bits > maxClusterBits {
		return nil, damaged("its clusters would have 2^%d bytes, and 512 bytes to 2 MiB are possible", bits)
	}
	s.clusterBits = uint(bits)
	s.snapshots = int(h.u32(atSnapshots))
	if err := h.features(s); err != nil {
		return nil, err
	}
	if err := h.others(); err != nil {
		return nil, err
	}
	return s, h.geometry(s)
}

// damaged is the error for a file that contradicts the format or itself.
func damaged(format string, args ...any) error {
	return errs.New(errs.Corrupt, "the qcow2 image is damaged: %s; qemu-img check FILE tells more, and qemu-img check -r all may repair a copy of it", fmt.Sprintf(format, args...))
}

// cut is the error for a file that ends before what it tells of.
func cut(length int64, format string, args ...any) error {
	return errs.New(errs.Corrupt, "the qcow2 file ends at byte %d, before %s: it is cut, so get it whole", length, fmt.Sprintf(format, args...))
}

// features judges what version 3 added to the header.
func (h *head) features(s *shape) error {
	if s.version == 2 {
		return nil
	}
	length := h.u32(atHeaderLen)
	if length < headerLen || length%8 != 0 || int64(length) > 1<<s.clusterBits {
		return damaged("its header says that it has %d bytes", length)
	}
	bits := h.u64(atIncompatible)
	has := func(bit int) bool { return bits>>bit&1 == 1 }
	var unknown []string
	for bit := featureExtendedL2 + 1; bit < 64; bit++ {
		if has(bit) {
			unknown = append(unknown, h.featureName(s, bit))
		}
	}
	switch {
	case len(unknown) > 0:
		return errs.New(errs.Invalid, "the qcow2 image needs what is not known here: %s; convert it with a QEMU that knows: qemu-img convert -O raw FILE disk.raw", strings.Join(unknown, ", "))
	case has(featureCorrupt):
		return errs.New(errs.Corrupt, "the qcow2 image is marked as corrupt by the program that used it; repair a copy of it, then import that: qemu-img check -r all COPY")
	case has(featureDataFile):
		return errs.New(errs.Invalid, "the qcow2 image keeps its data in another file%s; bring them together first: qemu-img convert -O qcow2 FILE whole.qcow2", quoted(h.extension(s, extDataFile)))
	}
	if s.extended = has(featureExtendedL2); s.extended && s.clusterBits < minClusterBits+5 {
		return damaged("clusters of %d bytes are too small for subclusters", 1<<s.clusterBits)
	}
	method := byte(compressZlib)
	if length > headerLen && len(h.b) > atCompression {
		method = h.b[atCompression]
	}
	switch {
	case (method != compressZlib) != has(featureCompression):
		return damaged("its header contradicts itself about how clusters are compressed")
	case method > compressZstd:
		return errs.New(errs.Invalid, "the qcow2 image is compressed by method %d, and only zlib and zstd are known here; convert it with a QEMU that knows: qemu-img convert -O raw FILE disk.raw", method)
	}
	s.zstd = method == compressZstd
	return nil
}

// others judges what would need a second file or a secret.
func (h *head) others() error {
	if method := h.u32(atCrypt); method != 0 {
		return errs.New(errs.Invalid, "the qcow2 image is encrypted; convert it first, with its secret: qemu-img convert --object secret,id=s,file=SECRET --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=FILE -O raw disk.raw")
	}
	at, n := h.u64(atBackingOffset), int64(h.u32(atBackingLen))
	if at == 0 {
		return nil
	}
	var name []byte
	if n <= maxBackingName && at <= uint64(h.length) && n <= h.length-int64(at) {
		name = make([]byte, n)
		if err := readFull(h.r, name, int64(at)); err != nil {
			return err
		}
	}
	return errs.New(errs.Invalid, "the qcow2 image holds only what differs from its backing file%s; bring them together first: qemu-img convert -O qcow2 FILE whole.qcow2", quoted(name))
}

// geometry judges size and L1 table.
func (h *head) geometry(s *shape) error {
	size, at := h.u64(atSize), h.u64(atL1Offset)
	spanBits := s.clusterBits + s.l2Bits() // of what one L2 table maps
	if size > maxL1<<spanBits {
		return errs.New(errs.TooLarge, "the qcow2 image says that it has %d bytes, which is more than %d, the most that its clusters can hold", size, uint64(maxL1)<<spanBits)
	}
	s.size, s.l1At = int64(size), int64(at)
	need := ceilDiv(s.size, 1<<spanBits)
	switch {
	case need > int64(h.u32(atL1Entries)):
		return damaged("its L1 table has %d entries, and its %d bytes need %d", h.u32(atL1Entries), size, need)
	case need == 0:
		return nil
	case at == 0 || at%(1<<s.clusterBits) != 0:
		return damaged("its L1 table cannot begin at byte %d", at)
	case at > uint64(h.length) || need*8 > h.length-int64(at):
		return cut(h.length, "the end of its L1 table at byte %d", at)
	}
	return nil
}

// featureName is what the file calls an incompatible feature, else its bit.
func (h *head) featureName(s *shape, bit int) string {
	const entry = 48 // kind, bit, 46 bytes of name
	names := h.extension(s, extFeatureNames)
	for ; len(names) >= entry; names = names[entry:] {
		if names[0] == 0 && int(names[1]) == bit {
			if name := quoted(names[2:entry]); name != "" {
				return "the feature" + name
			}
		}
	}
	return fmt.Sprintf("the incompatible feature %d", bit)
}

// extension is the content of the header extension of a kind; nil if there is
// none. It only serves words for people, so what is wrong here is no error.
func (h *head) extension(s *shape, kind uint32) []byte {
	area := make([]byte, min(h.length, 1<<s.clusterBits, maxExtensions))
	if readFull(h.r, area, 0) != nil {
		return nil
	}
	for at := int64(h.u32(atHeaderLen)); at+8 <= int64(len(area)); {
		k, n := binary.BigEndian.Uint32(area[at:]), int64(binary.BigEndian.Uint32(area[at+4:]))
		at += 8
		if k == 0 || n > int64(len(area))-at {
			return nil
		}
		if k == kind {
			return area[at : at+n]
		}
		at += ceilDiv(n, 8) * 8
	}
	return nil
}

// quoted is a name from the file in a form that is safe to print, with a
// space before it; "" if there is none.
func quoted(name []byte) string {
	text, _, _ := strings.Cut(string(name), "\x00")
	if text == "" {
		return ""
	}
	return fmt.Sprintf(" %q", text)
}

// readFull fills buf from a place that lies in the file.
func readFull(r io.ReaderAt, buf []byte, at int64) error {
	n, err := r.ReadAt(buf, at)
	switch {
	case n == len(buf):
		return nil
	case err == nil, errors.Is(err, io.EOF):
		return errs.New(errs.Conflict, "the qcow2 file became shorter while it was read; try again when nobody uses it")
	}
	return fmt.Errorf("read %d bytes of the qcow2 file at %d: %w", len(buf), at, err)
}
