package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"cairn/internal/extent"
)

// maxRun bounds a range of Data, so that a caller gets to work after a look
// at few tables.
const maxRun = 64 << 20

// Reader is the content of a qcow2 file: its active layer, not its internal
// snapshots. It is an Image.
type Reader struct {
	*shape
	tables   tables
	unpacker unpacker
	file     io.ReaderAt
	length   int64 // of the file
}

// Open reads the header of a qcow2 file of length bytes, which r must give
// unchanged for as long as the Reader is used.
//
// errs.Invalid: this is no qcow2 file, or one with a feature that is refused.
// errs.TooLarge: its virtual size cannot be. errs.Corrupt: it is damaged, cut
// or marked so; ReadAt and Data answer that too, as tables are read when they
// are needed. Messages speak of FILE where a command needs the file's name.
func Open(r io.ReaderAt, length int64) (*Reader, error) {
	s, err := readShape(r, length)
	if err != nil {
		return nil, err
	}
	return &Reader{
		shape: s, file: r, length: length,
		tables:   tables{file: r, length: length, pageBytes: min(int64(1)<<s.clusterBits, maxPage)},
		unpacker: unpacker{file: r, zstd: s.zstd},
	}, nil
}

// Is reports whether a file that begins with head calls itself qcow2. Four
// bytes of head are enough.
func Is(head []byte) bool {
	return len(head) >= 4 && binary.BigEndian.Uint32(head) == magic
}

// Size is the virtual size in bytes, as the file has it: other writers than
// QEMU may give one that is no multiple of 512.
func (r *Reader) Size() int64 { return r.size }

// Snapshots is how many internal snapshots the file says it has.
func (r *Reader) Snapshots() int { return r.snapshots }

// state is where the content of a part of the volume lies.
type state uint8

const (
	stateZero   state = iota // nowhere: it is zeros
	statePlain               // in the file, as it is
	statePacked              // in the file, compressed
)

// part is what one entry tells of the volume, from a byte on.
type part struct {
	state state
	len   int64  // bytes of the volume, at least 1; may reach past its end
	at    int64  // statePlain: where the first byte lies
	entry uint64 // statePacked: the L2 entry without its flags
}

// find looks up byte off, which lies in the volume.
func (r *Reader) find(off int64) (part, error) {
	spanBits := r.clusterBits + r.l2Bits()
	e, err := r.tables.entry(r.l1At + off>>spanBits*8)
	if err != nil {
		return part{}, err
	}
	if e&^(entryOffset|copied) != 0 {
		return part{}, damaged("the L1 entry for byte %d is %#x, which sets reserved bits", off, e)
	}
	l2At := int64(e & entryOffset)
	if l2At == 0 {
		return part{len: 1<<spanBits - off&(1<<spanBits-1)}, nil
	}
	if l2At&(1<<r.clusterBits-1) != 0 {
		return part{}, damaged("the L2 table for byte %d cannot begin at byte %d", off, l2At)
	}
	at := l2At + off>>r.clusterBits&(1<<r.l2Bits()-1)*r.entryBytes()
	if e, err = r.tables.entry(at); err != nil {
		return part{}, err
	}
	left := 1<<r.clusterBits - off&(1<<r.clusterBits-1) // of the cluster
	if e&compressed != 0 {
		return part{state: statePacked, len: left, entry: e &^ (compressed | copied)}, nil
	}
	return r.standard(e, at, off, left)
}

// standard reads the L2 entry e, which lies at byte at and is not of a
// compressed cluster; left bytes of the cluster follow from off.
func (r *Reader) standard(e uint64, at, off, left int64) (part, error) {
	if e&^(entryOffset|copied|readsZero) != 0 || e&readsZero != 0 && (r.extended || r.version == 2) {
		return part{}, damaged("the L2 entry for byte %d is %#x, which sets reserved bits", off, e)
	}
	cluster := int64(e & entryOffset)
	if cluster&(1<<r.clusterBits-1) != 0 {
		return part{}, damaged("the cluster for byte %d cannot begin at byte %d", off, cluster)
	}
	p := part{len: left, state: statePlain}
	if r.extended {
		var err error
		if p, err = r.subcluster(at+8, off, cluster != 0); err != nil {
			return part{}, err
		}
	}
	if cluster == 0 || e&readsZero != 0 || p.state == stateZero {
		return part{len: p.len}, nil
	}
	p.at = cluster + off&(1<<r.clusterBits-1)
	if need := min(p.len, r.size-off); p.at > r.length-need {
		return part{}, cut(r.length, "byte %d of its content, which lies at byte %d", off, p.at)
	}
	return p, nil
}

// subcluster tells of the subclusters from off on that are alike, by the
// bitmap at byte at. stored: the cluster has a place in the file.
func (r *Reader) subcluster(at, off int64, stored bool) (part, error) {
	bitmap, err := r.tables.entry(at)
	if err != nil {
		return part{}, err
	}
	full, zero := uint32(bitmap), uint32(bitmap>>32)
	if full&zero != 0 || full != 0 && !stored {
		return part{}, damaged("the subclusters for byte %d contradict themselves: %#x", off, bitmap)
	}
	subBits := r.clusterBits - 5
	first := off >> subBits & (subclusters - 1)
	same := full >> first // a run of ones or zeros begins here
	p := part{}
	if same&1 == 1 {
		p.state, same = statePlain, ^same
	}
	last := min(first+int64(bits.TrailingZeros32(same)), subclusters)
	p.len = last<<subBits - off&(1<<r.clusterBits-1)
	return p, nil
}

// Data returns the first range at or after off that may hold anything but
// zeros, or io.EOF. A range may end where more data follows.
func (r *Reader) Data(ctx context.Context, off int64) (extent.Range, error) {
	if off < 0 {
		return extent.Range{}, fmt.Errorf("find data from byte %d of an image", off)
	}
	begin, err := r.skip(ctx, off, r.size, true)
	if err != nil {
		return extent.Range{}, err
	}
	if begin >= r.size {
		return extent.Range{}, io.EOF
	}
	end, err := r.skip(ctx, begin, begin+min(maxRun, r.size-begin), false)
	return extent.Range{Off: begin, Len: end - begin}, err
}

// skip is the first byte from off on that is not in zeros, or only there;
// end if there is none.
func (r *Reader) skip(ctx context.Context, off, end int64, zero bool) (int64, error) {
	for off < end {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		p, err := r.find(off)
		if err != nil {
			return 0, err
		}
		if (p.state == stateZero) != zero {
			return off, nil
		}
		off += min(p.len, end-off)
	}
	return off, nil
}

// ReadAt fills buf whole from byte off of the content.
func (r *Reader) ReadAt(ctx context.Context, buf []byte, off int64) error {
	if off < 0 || int64(len(buf)) > r.size-off {
		return fmt.Errorf("read %d bytes at %d of an image of %d bytes", len(buf), off, r.size)
	}
	for len(buf) > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p, err := r.find(off)
		if err != nil {
			return err
		}
		n := min(p.len, int64(len(buf)))
		switch p.state {
		case stateZero:
			clear(buf[:n])
		case statePlain:
			if n, err = r.neighbours(p, off, int64(len(buf))); err == nil {
				err = readFull(r.file, buf[:n], p.at)
			}
		case statePacked:
			var cluster []byte
			if cluster, err = r.unpack(p.entry, off); err == nil {
				copy(buf[:n], cluster[off&(1<<r.clusterBits-1):])
			}
		}
		if err != nil {
			return err
		}
		buf, off = buf[n:], off+n
	}
	return nil
}

// neighbours is how many bytes, up to most, lie one behind the other in the
// file from p on, which is the part at off.
func (r *Reader) neighbours(p part, off, most int64) (int64, error) {
	n := p.len
	for n < most {
		next, err := r.find(off + n)
		if err != nil {
			return 0, err
		}
		if next.state != statePlain || next.at != p.at+n {
			break
		}
		n += next.len
	}
	return min(n, most), nil
}

// unpack gives the whole compressed cluster that holds byte off. It is valid
// until the next call.
func (r *Reader) unpack(entry uint64, off int64) ([]byte, error) {
	// Where it lies, and behind that how many sectors it touches besides the
	// first. A cluster of the format's largest size still leaves 50 bits.
	offsetBits := 62 - (r.clusterBits - 8)
	at := int64(entry & (1<<offsetBits - 1))
	n := (int64(entry>>offsetBits)+1)*sector - at&(sector-1)
	if at >= r.length {
		return nil, cut(r.length, "byte %d of its content, which lies at byte %d", off, at)
	}
	// The length is rounded up to sectors, the file is not.
	return r.unpacker.cluster(at, min(n, r.length-at), 1<<r.clusterBits)
}
