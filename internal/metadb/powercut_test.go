package metadb_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"cairn/internal/foldertest"
	"cairn/internal/metadb"
	"cairn/internal/service"
)

// walHeader is the size of the log's header, which is new when the log is
// begun again (sqlite.org/fileformat2.html, 4.1).
const walHeader = 32

// files are the database's bytes at one moment.
type files struct{ db, wal []byte }

func readFiles(t *testing.T, path string) (f files) {
	t.Helper()
	var err error
	if f.db, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	if f.wal, err = os.ReadFile(path + "-wal"); err != nil {
		t.Fatal(err)
	}
	return f
}

// step is transaction n: two rows that must always say the same, far apart.
func step(n int, filler string) func(tx service.Tx) error {
	return func(tx service.Tx) error {
		for key, value := range map[string]string{"a": strconv.Itoa(n), "m": filler, "z": strconv.Itoa(n)} {
			if err := tx.SetSetting(key, value); err != nil {
				return err
			}
		}
		return nil
	}
}

// cutter opens what power cuts leave of a database.
type cutter struct {
	t    *testing.T
	dir  string
	cuts int
}

// shows opens the files and tells which transaction they show.
func (c *cutter) shows(f files, what string) int {
	c.t.Helper()
	c.cuts++
	dir := filepath.Join(c.dir, "cut")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "cairn.db")
	for name, b := range map[string][]byte{path: f.db, path + "-wal": f.wal} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
	db, err := metadb.Open(context.Background(), path)
	if err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
	defer db.Close()
	var a, z string
	err = db.View(context.Background(), func(tx service.Tx) (err error) {
		if a, err = tx.Setting("a"); err == nil {
			z, err = tx.Setting("z")
		}
		return err
	})
	if err != nil || a != z {
		c.t.Fatalf("%s: the rows say %q and %q, %v", what, a, z, err)
	}
	n, err := strconv.Atoi(a)
	if err != nil {
		c.t.Fatalf("%s: the row says %q", what, a)
	}
	return n
}

// want opens the files, which must show transaction n-1 or n.
func (c *cutter) want(f files, n int, what string) {
	c.t.Helper()
	if got := c.shows(f, what); got != n && got != n-1 {
		c.t.Errorf("%s: transaction %d is shown, want %d or %d", what, got, n-1, n)
	}
}

// mixed is old with some units of now in it.
func mixed(old, now []byte, unit int, rng *rand.Rand) []byte {
	out := make([]byte, max(len(old), len(now)))
	copy(out, old)
	for at := 0; at < len(now); at += unit {
		if rng.IntN(2) == 0 {
			copy(out[at:], now[at:min(at+unit, len(now))])
		}
	}
	return out[:rng.IntN(len(out)-len(old)+1)+len(old)]
}

// TestPowerCut takes the real bytes of the log after each transaction and cuts
// what that transaction wrote: at every sector, with nothing or zeros or what
// was there before behind it, and torn at 512 bytes and at 4 KiB. What opens
// shows the transaction or the one before, never a part, whatever was acknowledged
// before; and where a checkpoint wrote to the database it shows all.
func TestPowerCut(t *testing.T) {
	dir := foldertest.InMemory(t)
	path := filepath.Join(dir, "cairn.db")
	db, err := metadb.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rng := rand.New(rand.NewPCG(1, 1))
	c := &cutter{t: t, dir: dir}
	if err := db.Update(t.Context(), step(0, "")); err != nil {
		t.Fatal(err)
	}
	old, checkpoints, restarts := readFiles(t, path), 0, 0
	for n := 1; n <= 40; n++ {
		filler := strings.Repeat(strconv.Itoa(n), 1+rng.IntN(9000))
		if n > 6 { // fill the log until it is written back, and beyond
			filler = strings.Repeat(strconv.Itoa(n), 100000)
		}
		if err := db.Update(t.Context(), step(n, filler)); err != nil {
			t.Fatal(err)
		}
		now := readFiles(t, path)
		if got := c.shows(now, "the whole"); got != n {
			t.Fatalf("transaction %d is acknowledged, %d is shown", n, got)
		}
		if n <= 6 {
			c.everySector(old, now, n)
		}
		for _, unit := range []int{512, 4096} {
			for range 4 {
				c.want(files{old.db, mixed(old.wal, now.wal, unit, rng)}, n, "a torn log")
				if bytes.Equal(old.db, now.db) {
					continue
				}
				if got := c.shows(files{mixed(old.db, now.db, unit, rng), now.wal}, "a torn checkpoint"); got != n {
					t.Errorf("transaction %d is shown beside a torn checkpoint, %d was acknowledged", got, n)
				}
			}
		}
		if !bytes.Equal(old.db, now.db) {
			checkpoints++
		}
		if !bytes.Equal(old.wal[:walHeader], now.wal[:walHeader]) {
			restarts++
		}
		old = now
	}
	if checkpoints == 0 || restarts == 0 {
		t.Errorf("%d checkpoints and %d restarts of the log: the transactions are too few", checkpoints, restarts)
	}
	t.Logf("40 transactions, %d checkpoints, %d restarts of the log, %d power cuts", checkpoints, restarts, c.cuts)
}

// everySector cuts what a transaction appended to the log at each sector.
func (c *cutter) everySector(old, now files, n int) {
	c.t.Helper()
	for at := len(old.wal); at < len(now.wal); at += 512 {
		cut := now.wal[:at]
		c.want(files{old.db, cut}, n, "a log that ends early")
		padded := append(bytes.Clone(cut), make([]byte, len(now.wal)-at)...)
		c.want(files{old.db, padded}, n, "a log that ends in zeros")
	}
}
