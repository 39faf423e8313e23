package file_test

import (
	"testing"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/blobtest"
	"cairn/internal/blobstore/file"
)

func open(t *testing.T, dir string) *file.Store {
	t.Helper()
	s, err := file.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blobstore.Store { return open(t, t.TempDir()) })
}
