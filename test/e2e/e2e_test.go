// Package e2e tests the cairn binary from outside: over HTTP, over its unix
// socket and over its command line, with kill -9 among the tools.
//
// CAIRN_BIN takes a built binary instead of building one, CAIRN_SEED repeats
// a run, CAIRN_LONG=1 runs more of everything.
package e2e

import (
	"os"
	"testing"

	"cairn/test/e2e/harness"
)

var builder harness.Builder

func TestMain(m *testing.M) {
	code := m.Run()
	builder.Remove()
	os.Exit(code)
}

// serve starts a server for one test.
func serve(t *testing.T, extra ...string) *harness.Server {
	t.Helper()
	return harness.Start(t, builder.Path(t), "", extra...)
}

// memoryFolder is a folder on a filesystem in memory, or where there is none
// that can be used the test's own temporary folder.
func memoryFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "cairn-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove %s: %v", dir, err)
		}
	})
	return dir
}
