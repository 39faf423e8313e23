package keys

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/zeebo/blake3"

	"cairn/internal/errs"
	"cairn/internal/repo/addr"
)

// Header is the decoded repository header.
type Header struct {
	Repo       addr.PackID
	Generation uint64
	Created    time.Time
	slots      []slot
	opened     int // index of the slot that the key opened
}

const (
	version    = 1
	fixedSize  = 48
	tailSize   = 64
	maxSlots   = 64
	fanoutLog  = 5
	cipherGCM  = 1
	hashBlake3 = 1
)

var magic = []byte("CAIRNHDR")

// NewHeader makes generation 1 of a repository's header with one slot.
func NewHeader(m Master, repo addr.PackID, o Opener, now time.Time) *Header {
	h := &Header{Repo: repo, Generation: 1, Created: now.UTC().Truncate(time.Microsecond)}
	h.slots = append(h.slots, sealSlot(m, repo, o, now))
	return h
}

// Encode gives the header's bytes.
func (h *Header) Encode(m Master) []byte {
	b := make([]byte, fixedSize, fixedSize+len(h.slots)*slotSize+tailSize)
	copy(b, magic)
	le := binary.LittleEndian
	le.PutUint16(b[8:], version)
	b[10], b[11], b[12], b[13] = addr.ChunkLog, fanoutLog, cipherGCM, hashBlake3
	le.PutUint16(b[14:], uint16(len(h.slots)))
	copy(b[16:], h.Repo[:])
	le.PutUint64(b[32:], h.Generation)
	le.PutUint64(b[40:], uint64(h.Created.UnixMicro()))
	for i := range h.slots {
		b = append(b, h.slots[i][:]...)
	}
	mac := macHeader(m, b)
	b = append(b, mac[:]...)
	sum := blake3.Sum256(b)
	return append(b, sum[:]...)
}

func macHeader(m Master, b []byte) addr.ID {
	return newHasher("cairn v1 header mac", m.enc[:]).ID(b)
}

// Decode reads a header and opens it. A damaged header is errs.Corrupt, an
// unknown version errs.Conflict, a wrong key errs.Denied.
func Decode(b []byte, o Opener) (*Header, Master, error) {
	var none Master
	h, err := Peek(b)
	if err != nil {
		return nil, none, err
	}
	if err := o.admit(h.Repo); err != nil {
		return nil, none, err
	}
	i, m, ok := h.open(o)
	if !ok {
		return nil, none, errs.New(errs.Denied, "%s does not open repository %s; cairn key list shows what does", o, h.Repo)
	}
	h.opened = i
	want := macHeader(m, b[:len(b)-tailSize])
	if !bytes.Equal(want[:], b[len(b)-tailSize:len(b)-32]) {
		return nil, none, corrupt("its mac is wrong")
	}
	return h, m, nil
}

// open tries the slots that o may open.
func (h *Header) open(o Opener) (i int, m Master, ok bool) {
	passphrases := 0
	for i := range h.slots {
		s := &h.slots[i]
		if s.kind() == PassphraseSlot {
			passphrases++
		}
		if s.kind() != o.kind() || !s.usable() || passphrases > maxPassphrases {
			continue
		}
		if m, ok := s.open(h.Repo, o); ok {
			return i, m, true
		}
	}
	return 0, m, false
}

func corrupt(why string) error {
	return errs.Wrap(errs.Corrupt, fmt.Errorf("%w: %s", errHeader, why),
		"the repository header is damaged; its second copy or your own copy of the repository is needed")
}

// Peek reads the plain part of a header. Its checksum tells damage from whole;
// only Decode and Verify tell who wrote it.
func Peek(b []byte) (*Header, error) {
	le := binary.LittleEndian
	if len(b) < fixedSize+tailSize || !bytes.Equal(b[:8], magic) {
		return nil, corrupt("no magic")
	}
	sum := blake3.Sum256(b[:len(b)-32])
	if !bytes.Equal(sum[:], b[len(b)-32:]) {
		return nil, corrupt("its checksum is wrong")
	}
	if v := le.Uint16(b[8:]); v != version {
		return nil, errs.New(errs.Conflict, "the repository has format version %d, and this program knows version %d; use a newer program", v, version)
	}
	if b[10] != addr.ChunkLog || b[11] != fanoutLog || b[12] != cipherGCM || b[13] != hashBlake3 {
		return nil, errs.New(errs.Conflict, "the repository was made with chunk size 2^%d, fan-out 2^%d, cipher %d and hash %d, which this program does not know; use a newer program", b[10], b[11], b[12], b[13])
	}
	n := int(le.Uint16(b[14:]))
	if n == 0 || n > maxSlots || len(b) != fixedSize+n*slotSize+tailSize {
		return nil, corrupt("its length does not fit its slots")
	}
	h := &Header{Generation: le.Uint64(b[32:]), Created: time.UnixMicro(int64(le.Uint64(b[40:]))).UTC()}
	copy(h.Repo[:], b[16:32])
	for i := range n {
		s := slot(b[fixedSize+i*slotSize:])
		if !s.reservedZero() {
			return nil, corrupt("reserved bytes of a key slot are set")
		}
		h.slots = append(h.slots, s)
	}
	return h, nil
}

// Verify checks another header of this repository: whole, of the generation
// that its name says, and written by one who knows the master secret.
func (h *Header) Verify(m Master, generation uint64, b []byte) error {
	o, err := Peek(b)
	if err != nil {
		return err
	}
	mac := macHeader(m, b[:len(b)-tailSize])
	if o.Repo != h.Repo || !bytes.Equal(mac[:], b[len(b)-tailSize:len(b)-32]) {
		return corrupt("its mac is wrong")
	}
	return o.CheckGeneration(generation)
}

// CheckGeneration refuses a header under another one's name: an old header
// must not come back as the newest.
func (h *Header) CheckGeneration(named uint64) error {
	if h.Generation != named {
		return corrupt(fmt.Sprintf("it is of generation %d, its name says %d", h.Generation, named))
	}
	return nil
}
