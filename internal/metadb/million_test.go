package metadb

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/chain"
	"cairn/internal/service"
)

// fillSQL makes %[1]d snapshots of %[2]d resources: chains of 30, four points
// a moment, most of them available.
const fillSQL = `
WITH RECURSIVE n(i) AS (VALUES (0) UNION ALL SELECT i + 1 FROM n WHERE i < %[1]d - 1),
p AS (SELECT i, printf('ss-%%08X', (i * 2654435761) %% 4294967296) AS id,
  printf('vol-%%08d', (i / 30) %% %[2]d) AS resource,
  printf('ss-%%08X', (i / 30 * 30 * 2654435761) %% 4294967296) AS root,
  printf('Nightly backup %%d of db-%%d', i, i %% 53) AS name, (i * 7919 + i / 30 * 31) %% 100 AS dice FROM n)
INSERT INTO snapshots SELECT id, resource, CASE i %% 30 WHEN 0 THEN '' ELSE root END, root, i %% 30 = 0,
  CASE WHEN dice < 2 THEN 'pending' WHEN dice < 5 THEN 'suspended' WHEN dice < 10 THEN 'deleted' WHEN dice < 14 THEN 'ceased' ELSE 'available' END,
  0, 0, 1073741824, 4096, 1700000000000000 + i * 1000000, 'ac1', name, '', '', 1700000000000000 + i / 4 * 4000000,
  1700000000000000, 1, 0, 'volume', 'disk', 0, '', '', 'crash', 'scan', '', '', '', 0, 0, 0, 0, 0,
  upper(id) || char(1) || upper(name), 0 FROM p`

// fill makes rows in bulk: without indexes and triggers, then those, then what
// is derived.
func fill(tb testing.TB, db *DB, rows, resources int) {
	tb.Helper()
	err := db.updateTx(tb.Context(), func(t *tx) error {
		var parts []struct{ Type, Name, SQL string }
		err := t.db.NewRaw(`SELECT type, name, sql FROM sqlite_schema
			WHERE type IN ('index', 'trigger') AND tbl_name = 'snapshots' AND sql IS NOT NULL`).Scan(t.ctx, &parts)
		if err != nil {
			return err
		}
		var stmts []string
		for _, p := range parts {
			stmts = append(stmts, "DROP "+p.Type+" "+p.Name)
		}
		stmts = append(stmts, fmt.Sprintf(fillSQL, rows, resources))
		for _, p := range parts {
			stmts = append(stmts, p.SQL)
		}
		for _, s := range stmts {
			if _, err := t.db.Tx.ExecContext(t.ctx, s); err != nil {
				return fmt.Errorf("%.40s: %w", s, err)
			}
		}
		return t.rebuild()
	})
	if err != nil {
		tb.Fatal(err)
	}
}

const million = 1_000_000

// millionCase is a kind of list with its goal for the 99th percentile.
type millionCase struct {
	name   string
	goal   time.Duration
	filter func(r *rand.Rand) service.SnapshotFilter
}

func millionCases(resources int) []millionCase {
	const fast, slow = 20 * time.Millisecond, 150 * time.Millisecond
	yes, no := true, false
	id := func(i int) string { return fmt.Sprintf("ss-%08X", uint32(i)*2654435761) }
	resource := func(r *rand.Rand) string { return fmt.Sprintf("vol-%08d", r.IntN(resources)) }
	list := func(goal time.Duration, name string, fn func(r *rand.Rand, f *service.SnapshotFilter)) millionCase {
		return millionCase{name, goal, func(r *rand.Rand) service.SnapshotFilter {
			f := service.SnapshotFilter{Zone: "ac1", Limit: []int{20, 100}[r.IntN(2)]}
			fn(r, &f)
			return f
		}}
	}
	word := func(words ...string) func(r *rand.Rand, f *service.SnapshotFilter) {
		return func(r *rand.Rand, f *service.SnapshotFilter) { f.Search = words[r.IntN(len(words))] }
	}
	deep := func(r *rand.Rand, f *service.SnapshotFilter) { f.Offset = r.IntN(million * 9 / 10) }
	return []millionCase{
		list(fast, "plain", func(*rand.Rand, *service.SnapshotFilter) {}),
		list(fast, "ids", func(r *rand.Rand, f *service.SnapshotFilter) {
			for range 100 {
				f.IDs = append(f.IDs, id(r.IntN(million)))
			}
		}),
		list(fast, "resource", func(r *rand.Rand, f *service.SnapshotFilter) { f.ResourceID = resource(r) }),
		list(fast, "root", func(r *rand.Rand, f *service.SnapshotFilter) { f.RootID = id(r.IntN(million/30) * 30) }),
		list(slow, "status common", func(_ *rand.Rand, f *service.SnapshotFilter) { f.Statuses = []chain.Status{chain.Available} }),
		list(slow, "status rare", func(_ *rand.Rand, f *service.SnapshotFilter) {
			f.Statuses = []chain.Status{chain.Pending, chain.Ceased}
		}),
		list(slow, "type full", func(_ *rand.Rand, f *service.SnapshotFilter) { f.Full = &yes }),
		list(slow, "type incremental, deep", func(r *rand.Rand, f *service.SnapshotFilter) { f.Full = &no; deep(r, f) }),
		list(slow, "deep", deep),
		list(slow, "deepest", func(_ *rand.Rand, f *service.SnapshotFilter) { f.Offset = million * 91 / 200 }),
		list(slow, "status deep", func(r *rand.Rand, f *service.SnapshotFilter) {
			f.Statuses = []chain.Status{chain.Available}
			deep(r, f)
		}),
		list(slow, "statuses all, deep", func(r *rand.Rand, f *service.SnapshotFilter) {
			f.Statuses = []chain.Status{chain.Pending, chain.Available, chain.Suspended, chain.Deleted, chain.Ceased}
			deep(r, f)
		}),
		list(slow, "search 1 sign", word("a", "7", "X", "Ö")),
		list(slow, "search 2 signs", word("ni", "ss", "42", "zq")),
		list(slow, "search in all", word("nightly", "backup", "NIGHTLY BACKUP")),
		list(slow, "search rare", word("backup 123456", "DB-52", "nothing like it", "ss-0000")),
		list(slow, "search deep", func(r *rand.Rand, f *service.SnapshotFilter) { f.Search = "night"; deep(r, f) }),
		list(slow, "search, status, type", func(_ *rand.Rand, f *service.SnapshotFilter) {
			f.Search, f.Full, f.Statuses = "db-5", &yes, []chain.Status{chain.Deleted}
		}),
		list(slow, "search, resource", func(r *rand.Rand, f *service.SnapshotFilter) { f.Search, f.ResourceID = "night", resource(r) }),
		list(slow, "search, root", func(r *rand.Rand, f *service.SnapshotFilter) { f.Search, f.RootID = "night", id(r.IntN(million/30)*30) }),
		list(slow, "resource, status, type", func(r *rand.Rand, f *service.SnapshotFilter) {
			f.ResourceID, f.Full, f.Statuses = resource(r), &yes, []chain.Status{chain.Deleted, chain.Suspended}
		}),
		list(slow, "resource, deep", func(r *rand.Rand, f *service.SnapshotFilter) {
			f.ResourceID = resource(r)
			f.Offset = r.IntN(million / resources * 9 / 10)
		}),
	}
}

// BenchmarkMillion reports the 99th percentile of each kind of list, total
// included, with a thousand resources and with one that owns all rows. Run it
// with -benchtime=100x: a percentile of fewer is none.
func BenchmarkMillion(b *testing.B) {
	for _, resources := range []int{1000, 1} {
		b.Run(fmt.Sprintf("resources=%d", resources), func(b *testing.B) {
			db := openAt(b, filepath.Join(b.TempDir(), "meta.db"))
			b.Cleanup(func() {
				if err := db.Close(); err != nil {
					b.Error(err)
				}
			})
			began := time.Now()
			fill(b, db, million, resources)
			b.Logf("made %d rows in %v", million, time.Since(began).Round(time.Second))
			for _, c := range millionCases(resources) {
				b.Run(c.name, func(b *testing.B) { measure(b, db, c) })
			}
			b.Run("insert", func(b *testing.B) { measureWrites(b, db) })
		})
	}
}

func measure(b *testing.B, db *DB, c millionCase) {
	r := rand.New(rand.NewPCG(1, 2))
	var took []time.Duration
	cpuBegan := cpuTime(b)
	for b.Loop() {
		f := c.filter(r)
		began := time.Now()
		err := db.View(b.Context(), func(tx service.Tx) error {
			_, _, err := tx.Snapshots(f)
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	cpu := cpuTime(b) - cpuBegan
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
	b.ReportMetric(ms(took[(len(took)-1)*99/100]), "p99-ms")
	b.ReportMetric(ms(cpu)/float64(len(took)), "cpu-ms")
	b.ReportMetric(ms(c.goal), "goal-ms")
}

// cpuTime is what this process has used: on a busy machine it says more than
// the clock.
func cpuTime(tb testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measureWrites inserts a point and makes it available: the price of the
// counters and blocks.
func measureWrites(b *testing.B, db *DB) {
	for b.Loop() {
		now := time.Now()
		p := service.Snapshot{
			Point: chain.Point{ID: fmt.Sprintf("ss-new-%d", now.UnixNano()), ResourceID: "vol-new", RootID: "ss-new", Status: chain.Pending},
			Zone:  "ac1", Name: "Nightly backup", CreateTime: now,
		}
		for _, write := range []func(tx service.Tx) error{
			func(tx service.Tx) error { return tx.InsertSnapshot(p) },
			func(tx service.Tx) error { p.Status = chain.Available; return tx.UpdateSnapshot(p) },
		} {
			if err := db.Update(b.Context(), write); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// At a million rows every list must be what looking at every row finds.
// CAIRN_LONG=1 runs it.
func TestMillion(t *testing.T) {
	if os.Getenv("CAIRN_LONG") != "1" {
		t.Skip("makes a million rows twice and looks at each for every list: set CAIRN_LONG=1 to run it")
	}
	for _, resources := range []int{1000, 1} {
		db := openAt(t, filepath.Join(t.TempDir(), "meta.db"))
		fill(t, db, million, resources)
		r := rand.New(rand.NewPCG(3, 4))
		err := db.View(t.Context(), func(st service.Tx) error {
			tx := st.(*tx)
			all, err := everyRow(tx)
			if err != nil {
				return err
			}
			for _, c := range millionCases(resources) {
				f := c.filter(r)
				rows, total, err := tx.Snapshots(f)
				if err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
				ids := make([]string, len(rows))
				for i, r := range rows {
					ids[i] = r.ID
				}
				want, wantTotal := plainly(all, f)
				if !slices.Equal(ids, want) || total != wantTotal {
					t.Errorf("%s, %d resources: %d of %d, want %d of %d, or others", c.name, resources, len(ids), total, len(want), wantTotal)
				}
			}
			return nil
		})
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// everyRow reads all rows in list order without indexes, counters or blocks.
func everyRow(t *tx) ([]listed, error) {
	var rows []listed
	err := t.db.NewRaw(`SELECT id, resource_id, root_id, is_full, status, zone, create_time, search_key
		FROM snapshots NOT INDEXED ORDER BY create_time DESC, id`).Scan(t.ctx, &rows)
	return rows, err
}

// plainly filters all rows one by one.
func plainly(all []listed, f service.SnapshotFilter) ([]string, int) {
	var ids []string
	for _, r := range all {
		if (len(f.IDs) == 0 || slices.Contains(f.IDs, r.ID)) && lets(f, r) {
			ids = append(ids, r.ID)
		}
	}
	total := len(ids)
	return ids[min(f.Offset, total):min(f.Offset+f.Limit, total)], total
}
