// Package foldertest gives tests folders in memory. A test that makes its own
// crashes needs nothing on a disk, and thousands of them would wait for it at
// every sync.
package foldertest

import (
	"os"
	"testing"
)

// shm is where Linux keeps a filesystem in memory.
const shm = "/dev/shm"

// InMemory makes a folder in memory, or where there is none as t.TempDir does.
// It goes when the test ends.
func InMemory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(shm, "cairn-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the test's folder: %v", err)
		}
	})
	return dir
}
