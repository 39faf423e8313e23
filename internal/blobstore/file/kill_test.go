package file

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/blobtest"
)

// killChild names the folder in which a child process is to put blobs.
const killChild = "CAIRN_TEST_BLOB_DIR"

// killBlob is the i-th blob of the child: sizes from 0 to about 1 MiB.
func killBlob(i int) []byte { return blobtest.Bytes(uint64(i), i*7919%(1<<20)) }

// TestMain turns the binary into TestKilled's child when asked to.
func TestMain(m *testing.M) {
	dir := os.Getenv(killChild)
	if dir == "" {
		os.Exit(m.Run())
	}
	s, err := Open(dir)
	for i := 0; err == nil && i < 10000; i++ {
		name := fmt.Sprintf("%d/%d", i%3, i)
		if err = s.Put(context.Background(), name, killBlob(i)); err == nil {
			fmt.Println(name)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// TestKilled kills a writing process with SIGKILL after a random number of
// acknowledged Puts: every acknowledged blob is there, every blob is whole,
// and no leftover is.
func TestKilled(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 12 {
		dir := t.TempDir()
		acked := killAfter(t, dir, rng.IntN(30))
		s := openAt(t, dir)
		wantNoTemp(t, s)
		found := make(map[string]bool)
		if err := s.List(t.Context(), "", func(i blobstore.Info) error {
			found[i.Name] = true
			var folder, n int
			if _, err := fmt.Sscanf(i.Name, "%d/%d", &folder, &n); err != nil {
				return err
			}
			want := killBlob(n)
			got := make([]byte, i.Size)
			if _, err := s.ReadAt(t.Context(), i.Name, got, 0); err != nil {
				return err
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s holds %d bytes, not the %d that were put", i.Name, len(got), len(want))
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for _, name := range acked {
			if !found[name] {
				t.Errorf("%s was acknowledged and is gone", name)
			}
		}
	}
}

// killAfter starts a child and kills it once it acknowledged n blobs; it
// returns all names that it acknowledged.
func killAfter(t *testing.T, dir string, n int) (acked []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), killChild+"="+dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	if n == 0 {
		killed = cmd.Process.Kill() == nil
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		acked = append(acked, lines.Text())
		if len(acked) >= n && !killed {
			killed = cmd.Process.Kill() == nil
		}
	}
	if err := cmd.Wait(); !killed || err == nil {
		t.Fatalf("the child ended by itself: %v: %s", err, stderr.String())
	}
	return acked
}
