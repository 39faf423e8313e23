package live

import (
	"bytes"
	"runtime"
	"testing"
)

// yields let every goroutine come to where it waits.
const yields = 1000

// A sync that runs while a write is about to change the data need not have
// what is written then: the next flush must sync again.
func TestSyncBesideWrite(t *testing.T) {
	ctx, content := t.Context(), bytes.Repeat([]byte("tree"), 64<<10)
	d, v, _ := cloned(t, content)
	ok(t, v.flush())
	v.stripe[0].Lock() // the write stops in front of the data
	written := make(chan error, 1)
	go func() {
		written <- v.write(ctx, change{p: bytes.Repeat([]byte("mine"), pageSize/4), n: pageSize})
	}()
	for !v.dirty.has(0) {
		runtime.Gosched()
	}
	for range yields {
		ok(t, v.syncData())
		runtime.Gosched()
	}
	v.stripe[0].Unlock()
	ok(t, <-written)
	if !v.unsynced.Load() {
		t.Error("a write was acknowledged that no later flush would sync")
	}
	ok(t, d.Close())
}
