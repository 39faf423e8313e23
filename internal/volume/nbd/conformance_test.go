package nbdvolume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"cairn/internal/nbd"
	"cairn/internal/volume"
	"cairn/internal/volume/volumetest"
)

// Our own server, with all that it can do, and with as little as possible.
func TestConformance(t *testing.T) {
	for name, change := range map[string]func(*nbd.ExportConfig){
		"everything":     func(*nbd.ExportConfig) {},
		"no contexts":    func(c *nbd.ExportConfig) { c.Contexts = nil },
		"no zeroing":     func(c *nbd.ExportConfig) { c.CanZero = false },
		"one connection": func(c *nbd.ExportConfig) { c.MultiConn, c.MaxConnections = false, 1 },
		"units of 4 KiB": func(c *nbd.ExportConfig) { c.BlockSize.Min = 4096 },
	} {
		t.Run(name, func(t *testing.T) {
			volumetest.Run(t, func(t *testing.T) volumetest.Harness {
				s := serve(t)
				disks := map[string]*disk{}
				made := 0
				newURI := func(size int64) string {
					made++
					export := fmt.Sprint("disk ", made)
					d := newDisk(size)
					c := exported(export, d)
					change(&c)
					s.add(c, d)
					disks[s.uri(export)] = d
					return s.uri(export)
				}
				h := harness(t, func(_ testing.TB, size int64) string { return newURI(size) })
				h.Change = func(_ testing.TB, s volume.Spec, buf []byte, off int64) { disks[s.Path].put(buf, off) }
				return h
			})
		})
	}
}

func harness(t *testing.T, newURI func(testing.TB, int64) string) volumetest.Harness {
	dir := t.TempDir()
	d, made := newDriver(t, dir), 0
	return volumetest.Harness{
		Driver: d,
		New: func(t testing.TB, size int64) volume.Spec {
			made++
			return register(t, d, fmt.Sprintf("vol-%d", made), newURI(t, size))
		},
		Absent: func(t testing.TB) volume.Spec {
			s, disk := serve(t), newDisk(1<<20)
			e := s.add(exported("absent", disk), disk)
			spec := register(t, d, "vol-absent", s.uri("absent"))
			ok(t, e.Remove(t.Context()))
			return spec
		},
		Restart: func(t testing.TB) volume.Driver { return newDriver(t, dir) },
		Path:    func(t testing.TB) (string, int64) { return newURI(t, 1<<20), 1 << 20 },
	}
}

// Other people's servers, each with one disk.
func TestConformanceOfOthers(t *testing.T) {
	for name, command := range map[string]func(t testing.TB, socket, file string, size int64) (string, []string){
		"nbdkit memory": func(_ testing.TB, socket, _ string, size int64) (string, []string) {
			return "nbdkit", []string{"-f", "-U", socket, "memory", fmt.Sprint(size)}
		},
		"nbdkit file": func(_ testing.TB, socket, file string, _ int64) (string, []string) {
			return "nbdkit", []string{"-f", "-U", socket, "file", file}
		},
		"nbdkit blocks": func(_ testing.TB, socket, file string, _ int64) (string, []string) {
			return "nbdkit", []string{"-f", "-U", socket, "--filter=blocksize-policy", "file", file,
				"blocksize-minimum=512", "blocksize-preferred=4096", "blocksize-maximum=64K", "blocksize-error-policy=error"}
		},
		"qemu-nbd raw": func(_ testing.TB, socket, file string, _ int64) (string, []string) {
			return "qemu-nbd", []string{"-t", "-f", "raw", "--discard=unmap", "-k", socket, file}
		},
		"qemu-nbd qcow2": func(t testing.TB, socket, file string, size int64) (string, []string) {
			needs(t, "qemu-img")
			ok(t, os.Remove(file))
			run(t, "qemu-img", "create", "-q", "-f", "qcow2", file, fmt.Sprint(size))
			return "qemu-nbd", []string{"-t", "-e", "4", "-f", "qcow2", "--discard=unmap", "-k", socket, file}
		},
	} {
		t.Run(name, func(t *testing.T) {
			if long := name != "nbdkit blocks" && name != "qemu-nbd qcow2"; long && os.Getenv("CAIRN_LONG") != "1" {
				t.Skip("skipped: one server of each kind is enough without CAIRN_LONG=1")
			}
			volumetest.Run(t, func(t *testing.T) volumetest.Harness {
				return harness(t, func(t testing.TB, size int64) string {
					dir := shortDir(t)
					file, socket := filepath.Join(dir, "disk"), filepath.Join(dir, "s")
					ok(t, errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, size)))
					tool, args := command(t, socket, file, size)
					start(t, socket, tool, args...)
					return nbd.URI{Network: "unix", Address: socket}.String()
				})
			})
		})
	}
}
