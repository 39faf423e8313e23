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
