// Package harness runs the real cairn binary for black-box tests: it builds
// it, starts and kills servers on temporary folders, speaks raw HTTP to them,
// and keeps the truth about volume contents beside them.
//
// It imports nothing of the product, so what it believes about the wire was
// read from the contract alone.
//
// Invariants:
//   - a server listens on loopback and on its own folder's socket only, and
//     is dead when the test that started it ends;
//   - every wait is bounded by a number of polls, and a wait that runs out is
//     a failure that says what was waited for.
package harness

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"
)

// TB is what helpers need of *testing.T and of *rapid.T.
type TB interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Long reports whether the thorough variants were asked for.
func Long() bool { return os.Getenv("CAIRN_LONG") == "1" }

// Seed is CAIRN_SEED, or a fresh one, and is printed either way.
func Seed(t TB) uint64 {
	t.Helper()
	seed := rand.Uint64N(1 << 62)
	if s := os.Getenv("CAIRN_SEED"); s != "" {
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("CAIRN_SEED=%q is not a number: %v", s, err)
		}
		seed = v
	}
	t.Logf("seed: CAIRN_SEED=%d", seed)
	return seed
}

// Rand is a generator for a seed.
func Rand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, seed^0x9e3779b97f4a7c15)) }

// Builder makes the binary once for a whole test process.
type Builder struct {
	once sync.Once
	dir  string
	path string
	err  error
}

// Path is CAIRN_BIN, or a binary built from this source tree.
func (b *Builder) Path(t testing.TB) string {
	t.Helper()
	b.once.Do(b.build)
	if b.err != nil {
		t.Fatalf("no binary to test: %v", b.err)
	}
	return b.path
}

func (b *Builder) build() {
	if bin := os.Getenv("CAIRN_BIN"); bin != "" {
		b.path, b.err = filepath.Abs(bin)
		return
	}
	if b.dir, b.err = os.MkdirTemp("", "cairn-e2e-bin-"); b.err != nil {
		return
	}
	b.path = filepath.Join(b.dir, "cairn")
	out, err := exec.Command("go", "build", "-o", b.path, "cairn/cmd/cairn").CombinedOutput()
	if err != nil {
		b.err = fmt.Errorf("go build cairn/cmd/cairn: %w\n%s", err, out)
	}
}

// Remove deletes what Path built.
func (b *Builder) Remove() {
	if b.dir != "" {
		_ = os.RemoveAll(b.dir) // a leftover in the temp folder harms no one
	}
}

// Poll calls ok every 10 ms until it holds, at most for the given time; it
// reports whether it held.
func Poll(atMost time.Duration, ok func() bool) bool {
	const pause = 10 * time.Millisecond
	for range int(atMost/pause) + 1 {
		if ok() {
			return true
		}
		time.Sleep(pause)
	}
	return false
}

// Sum is a short name of some bytes.
func Sum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}
