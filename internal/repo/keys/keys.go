// Package keys holds a repository's secrets: the master secret, what is
// derived from it, the header whose slots wrap it, and what opens a slot: key
// file, passphrase, recovery key (FORMAT.md §2, §3).
//
// Invariants:
//   - secrets come from crypto/rand and are never printed, logged or put in
//     an error;
//   - a header is accepted only if its mac proves that its writer knew the
//     master secret that its slot yields.
package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/zeebo/blake3"

	"cairn/internal/errs"
	"cairn/internal/repo/addr"
)

// Master is the secret from which all keys of a repository come.
type Master struct {
	id  [32]byte
	enc [32]byte
}

// NewMaster draws a fresh secret.
func NewMaster() Master {
	var m Master
	Random(m.id[:])
	Random(m.enc[:])
	return m
}

// Random fills b. It cannot fail: crypto/rand ends the process if the
// system has no randomness.
func Random(b []byte) { rand.Read(b) } //nolint:errcheck // documented never to fail

func derive(context string, material []byte) (k [32]byte) {
	blake3.DeriveKey(context, material, k[:])
	return k
}

// Hasher makes ids. One Hasher serves one goroutine; Clone for more.
type Hasher struct {
	h    *blake3.Hasher
	key  [32]byte
	wide bool // chunks go through wideChunk, which is twice as fast
}

func newHasher(context string, material []byte) *Hasher {
	key := derive(context, material)
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic("a 32-byte key was refused: " + err.Error())
	}
	return &Hasher{h: h, key: key}
}

// Clone gives another goroutine its own Hasher with the same key.
func (x *Hasher) Clone() *Hasher { return &Hasher{h: x.h.Clone(), key: x.key, wide: x.wide} }

// ID is the keyed hash of the concatenation of parts.
func (x *Hasher) ID(parts ...[]byte) (id addr.ID) {
	if x.wide && len(parts) == 1 && len(parts[0]) == addr.ChunkSize {
		return wideChunk(&x.key, parts[0])
	}
	x.h.Reset()
	for _, p := range parts {
		x.h.Write(p) //nolint:errcheck // never fails
	}
	x.h.Sum(id[:0])
	return id
}

// widen lets chunks go through wideChunk if this processor can run it and it
// agrees with the general implementation: a wrong id would be found only when
// another machine reads the chunk.
func (x *Hasher) widen() *Hasher {
	if !wideSupported() {
		return x
	}
	sample := make([]byte, addr.ChunkSize)
	for i := range sample {
		sample[i] = byte(i*i>>7) ^ x.key[i%len(x.key)]
	}
	x.wide = x.ID(sample) == wideChunk(&x.key, sample)
	return x
}

// Chunks makes the Hasher for chunks.
func (m Master) Chunks() *Hasher { return newHasher("cairn v1 chunk id", m.id[:]).widen() }

// Nodes makes the Hasher for tree nodes.
func (m Master) Nodes() *Hasher { return newHasher("cairn v1 node id", m.id[:]) }

// Manifests makes the Hasher for manifests.
func (m Master) Manifests() *Hasher { return newHasher("cairn v1 manifest id", m.id[:]) }

// Journal makes the Hasher for records of the journal.
func (m Master) Journal() *Hasher { return newHasher("cairn v1 journal id", m.id[:]) }

// PackWrap is the cipher that wraps pack keys.
func (m Master) PackWrap() cipher.AEAD {
	k := derive("cairn v1 pack key wrap", m.enc[:])
	return AEAD(k[:])
}

// AEAD is AES-256-GCM under a 32-byte key.
func AEAD(key []byte) cipher.AEAD {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic("a 32-byte key was refused: " + err.Error())
	}
	g, err := cipher.NewGCM(b)
	if err != nil {
		panic("GCM was refused: " + err.Error())
	}
	return g
}

// File is the content of a key file.
type File struct {
	Repo addr.PackID // repository id
	Key  [32]byte
}

const filePrefix = "CAIRN-KEY-1-"

// NewFile draws a key for the repository.
func NewFile(repo addr.PackID) File {
	f := File{Repo: repo}
	Random(f.Key[:])
	return f
}

// Text is the key file's one line. It is a secret.
func (f File) Text() string {
	body := filePrefix + f.Repo.String() + "-" + hex.EncodeToString(f.Key[:])
	sum := blake3.Sum256([]byte(body))
	return body + "-" + hex.EncodeToString(sum[:4]) + "\n"
}

// ParseFile reads a key file's text. Its errors never hold any of the text.
func ParseFile(text string) (File, error) {
	var f File
	bad := errs.New(errs.Invalid, "the key file is not a Cairn key (one line that begins with %s); put the right file in its place", filePrefix)
	line := strings.TrimSpace(text)
	rest, ok := strings.CutPrefix(line, filePrefix)
	parts := strings.Split(rest, "-")
	if !ok || len(parts) != 3 || len(parts[1]) != 64 {
		return f, bad
	}
	sum := blake3.Sum256([]byte(line[:strings.LastIndexByte(line, '-')]))
	if hex.EncodeToString(sum[:4]) != parts[2] {
		return f, errs.New(errs.Invalid, "the key file has a typing error: its checksum does not match; restore it from your copy")
	}
	repo, err := addr.ParsePackID(parts[0])
	if err != nil {
		return f, bad
	}
	f.Repo = repo
	if _, err := hex.Decode(f.Key[:], []byte(parts[1])); err != nil {
		return f, bad
	}
	return f, nil
}

// String keeps the key out of logs and errors.
func (f File) String() string { return "the key file" }

func (f File) kind() SlotKind { return KeyFileSlot }

func (f File) admit(repo addr.PackID) error {
	if f.Repo != repo {
		return errs.New(errs.Denied, "the key file belongs to repository %s, but this is repository %s; use a key that was made for it", f.Repo, repo)
	}
	return nil
}

func (f File) slotKey(s *slot) []byte {
	k := derive("cairn v1 key file slot", append(f.Key[:], s.salt()...))
	return k[:]
}

var errHeader = fmt.Errorf("the repository header fails its checks")
