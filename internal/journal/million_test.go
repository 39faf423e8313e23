package journal_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/file"
	"cairn/internal/chain"
	"cairn/internal/engine"
	"cairn/internal/foldertest"
	"cairn/internal/journal"
	"cairn/internal/metadb"
	"cairn/internal/repo"
	"cairn/internal/service"
)

// TestMillion writes a million points to the journal at once, as the first
// start behind an upgrade or a recover does, then cuts the log while changes go
// on, and recovers all rows. CAIRN_LONG=1 runs it.
func TestMillion(t *testing.T) {
	if os.Getenv("CAIRN_LONG") != "1" {
		t.Skip("makes a million rows: set CAIRN_LONG=1 to run it")
	}
	const rows, batch = 1_000_000, 5000
	dir, ctx := foldertest.InMemory(t), context.Background()
	store, err := file.Open(dir + "/repo")
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	key := repo.NewKey()
	if err := repo.Init(ctx, store, key, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	r, err := repo.Open(ctx, store, key, dir+"/index")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	eng := engine.New(r, engine.Config{})
	db, err := metadb.OpenToLoad(ctx, dir+"/cairn.db")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for n := 0; n < rows; n += batch {
		if err := db.Update(ctx, func(tx service.Tx) error {
			for i := n; i < n+batch; i++ {
				if err := tx.InsertSnapshot(millionth(i)); err != nil {
					return err
				}
			}
			last, err := tx.LastChange()
			if err != nil {
				return err
			}
			return tx.ForgetChanges(last)
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = metadb.Open(ctx, dir+"/cairn.db"); err != nil {
		t.Fatal(err)
	}
	t.Logf("made %d rows in %v", rows, time.Since(began).Round(time.Second))

	measure := heapPeak()
	began = time.Now()
	s, err := journal.Open(ctx, journal.Config{Store: db, Log: eng, SummaryBlobs: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("first summary in %v, heap at most %d MiB; journal %d MiB", time.Since(began).Round(time.Millisecond), measure(), journalBytes(t, store)>>20)

	measure = heapPeak()
	slowest := time.Duration(0)
	began = time.Now()
	n := 0
	for ; time.Since(began) < 30*time.Second; n++ {
		at := time.Now()
		if err := s.Update(ctx, func(tx service.Tx) error { return tx.InsertVolume(volumeRow(fmt.Sprint("vol-", n))) }); err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(at))
	}
	t.Logf("%d changes in %v while summaries are written, slowest %v, heap at most %d MiB", n, time.Since(began).Round(time.Second), slowest.Round(time.Millisecond), measure())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	measure = heapPeak()
	began = time.Now()
	fresh, err := metadb.OpenToLoad(ctx, dir+"/new.db")
	if err != nil {
		t.Fatal(err)
	}
	report, err := journal.Recover(ctx, journal.RecoverConfig{Store: fresh, Repo: eng, Zone: "ac1"})
	if err != nil {
		t.Fatal(err)
	}
	if report.Journal.State != journal.StateWhole || report.Count(journal.Damaged) != rows || len(report.Volumes) != n {
		t.Errorf("journal %+v, %d points, %d volumes", report.Journal, len(report.Points), len(report.Volumes))
	}
	if err := fresh.Close(); err != nil {
		t.Fatal(err)
	}
	if fresh, err = metadb.Open(ctx, dir+"/new.db"); err != nil {
		t.Fatal(err)
	}
	t.Logf("recovered in %v, heap at most %d MiB", time.Since(began).Round(time.Second), measure())
	if err := fresh.Close(); err != nil {
		t.Fatal(err)
	}
}

// millionth is a row of about the size that real ones have.
func millionth(i int) service.Snapshot {
	r := rand.New(rand.NewPCG(uint64(i), 5))
	at := origin.Add(time.Duration(i) * time.Minute)
	id := fmt.Sprintf("ss-%08X", uint32(i)*2654435761)
	return service.Snapshot{
		Point: chain.Point{ID: id, ResourceID: fmt.Sprintf("vol-%08d", i%1000), RootID: id, Full: true, Status: chain.Available, VirtualSize: 1 << 30, SizeBytes: r.Int64N(1 << 30), SnapshotTime: at},
		Zone:  "ac1", Name: fmt.Sprintf("Nightly backup %d of db-%d", i, i%53), CreateTime: at, StatusTime: at, IsTaken: true, ResourceType: "volume", ResourceName: "disk",
		GroupID: fmt.Sprintf("%016x%016x", r.Uint64(), r.Uint64()), JobID: fmt.Sprintf("%016x%016x", r.Uint64(), r.Uint64()), Consistency: "crash", CBT: "scan",
		Reason:       "a full snapshot was asked for",
		ManifestPack: fmt.Sprintf("%016x%016x", r.Uint64(), r.Uint64()), ManifestHash: strings.Repeat(fmt.Sprintf("%016x%016x", r.Uint64(), r.Uint64()), 2),
	}
}

// heapPeak watches the heap until the answer is asked for, in MiB.
func heapPeak() func() uint64 {
	runtime.GC()
	quit, done := make(chan struct{}), make(chan uint64)
	go func() {
		peak := uint64(0)
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapInuse)
			select {
			case <-quit:
				done <- peak >> 20
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() uint64 { close(quit); return <-done }
}

func journalBytes(t *testing.T, store blobstore.Store) (n int64) {
	t.Helper()
	if err := store.List(context.Background(), "journal/", func(b blobstore.Info) error { n += b.Size; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}
