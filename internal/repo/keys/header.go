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
	slots      [][slotSize]byte
}

const (
	version    = 1
	fixedSize  = 48
	slotSize   = 144
	tailSize   = 64
	maxSlots   = 64
	slotFile   = 1
	fanoutLog  = 5
	cipherGCM  = 1
	hashBlake3 = 1
)

var magic = []byte("CAIRNHDR")

// NewHeader makes generation 1 of a repository's header with one slot, opened
// by the key file f.
func NewHeader(m Master, f File, now time.Time) *Header {
	h := &Header{Repo: f.Repo, Generation: 1, Created: now.UTC().Truncate(time.Microsecond)}
	h.slots = append(h.slots, sealFileSlot(m, f))
	return h
}

func sealFileSlot(m Master, f File) (s [slotSize]byte) {
	s[0] = slotFile
	Random(s[16:44]) // salt and nonce
	secret := append(append([]byte(nil), m.id[:]...), m.enc[:]...)
	aad := append(append([]byte(nil), f.Repo[:]...), s[:32]...)
	AEAD(f.slotKey(s[16:32])).Seal(s[48:48], s[32:44], secret, aad)
	Random(s[128:])
	return s
}

func openFileSlot(s *[slotSize]byte, f File) (Master, bool) {
	var m Master
	aad := append(append([]byte(nil), f.Repo[:]...), s[:32]...)
	secret, err := AEAD(f.slotKey(s[16:32])).Open(nil, s[32:44], s[48:128], aad)
	if err != nil {
		return m, false
	}
	copy(m.id[:], secret[:32])
	copy(m.enc[:], secret[32:])
	return m, true
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

// Decode reads a header and opens it with the key file. A damaged header is
// errs.Corrupt, an unknown version errs.Conflict, a wrong key errs.Denied.
func Decode(b []byte, f File) (*Header, Master, error) {
	var none Master
	h, err := parse(b)
	if err != nil {
		return nil, none, err
	}
	if h.Repo != f.Repo {
		return nil, none, errs.New(errs.Denied, "the key file belongs to repository %s, but this is repository %s; use the key file that was made with it", f.Repo, h.Repo)
	}
	for i := range h.slots {
		if h.slots[i][0] != slotFile {
			continue
		}
		m, ok := openFileSlot(&h.slots[i], f)
		if !ok {
			continue
		}
		want := macHeader(m, b[:len(b)-tailSize])
		if !bytes.Equal(want[:], b[len(b)-tailSize:len(b)-32]) {
			return nil, none, corrupt("its mac is wrong")
		}
		return h, m, nil
	}
	return nil, none, errWrongKey(h.Repo)
}

func corrupt(why string) error {
	return errs.Wrap(errs.Corrupt, fmt.Errorf("%w: %s", errHeader, why),
		"the repository header is damaged; its second copy or your own copy of the repository is needed")
}

// parse reads the plain part of a header and checks its checksum.
func parse(b []byte) (*Header, error) {
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
		h.slots = append(h.slots, [slotSize]byte(b[fixedSize+i*slotSize:]))
	}
	return h, nil
}

// Verify checks another copy of this header: whole, of this repository, and
// written by one who knows the master secret.
func (h *Header) Verify(m Master, b []byte) error {
	o, err := parse(b)
	if err != nil {
		return err
	}
	mac := macHeader(m, b[:len(b)-tailSize])
	if o.Repo != h.Repo || !bytes.Equal(mac[:], b[len(b)-tailSize:len(b)-32]) {
		return corrupt("its mac is wrong")
	}
	return nil
}
