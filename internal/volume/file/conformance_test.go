package file

import (
	"fmt"
	"os"
	"testing"

	"cairn/internal/volume"
	"cairn/internal/volume/volumetest"
)

// change writes as a program would that heeds no lock.
func change(t testing.TB, path string, buf []byte, off int64) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	ok(t, err)
	_, err = f.WriteAt(buf, off)
	ok(t, err)
	ok(t, f.Close())
}

func TestRegisteredFiles(t *testing.T) {
	// "" is wherever temporary files are, and needs no rights.
	for _, kind := range []string{"", "ext4", "xfs", "btrfs", "tmpfs"} {
		t.Run("on="+kind, func(t *testing.T) {
			top := filesystem(t, kind)
			part := 0
			volumetest.Run(t, func(t *testing.T) volumetest.Harness {
				part++
				return registeredHarness(t, join(top, fmt.Sprint(part)), func(t testing.TB, size int64) string {
					return sparse(t, top, size)
				})
			})
		})
	}
}

func TestRegisteredDevices(t *testing.T) {
	need(t, "losetup")
	dir := memory(t, "64m")
	volumetest.Run(t, func(t *testing.T) volumetest.Harness {
		return registeredHarness(t, t.TempDir(), func(t testing.TB, size int64) string {
			return attach(t, sparse(t, dir, size))
		})
	})
}

func registeredHarness(t *testing.T, holds string, newPath func(testing.TB, int64) string) volumetest.Harness {
	restart := func(t testing.TB) volume.Driver {
		r, err := NewRegistered(holds)
		ok(t, err)
		return r
	}
	d, made := restart(t), 0
	register := func(t testing.TB, path string) volume.Spec {
		p, err := d.Probe(t.Context(), path)
		ok(t, err)
		made++
		return volume.Spec{ID: fmt.Sprintf("vol-%d", made), Path: p.Path, Identity: p.Identity, SizeBytes: p.SizeBytes}
	}
	return volumetest.Harness{
		Driver: d,
		New:    func(t testing.TB, size int64) volume.Spec { return register(t, newPath(t, size)) },
		Absent: func(t testing.TB) volume.Spec {
			s := register(t, sparse(t, t.TempDir(), 1<<20))
			ok(t, os.Remove(s.Path))
			return s
		},
		Restart: restart,
		Change:  func(t testing.TB, s volume.Spec, buf []byte, off int64) { change(t, s.Path, buf, off) },
		Path:    func(t testing.TB) (string, int64) { return newPath(t, 1<<20), 1 << 20 },
	}
}
