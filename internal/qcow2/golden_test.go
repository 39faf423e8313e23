package qcow2_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// goldens are images that qemu-img made: testdata/NAME.gz, made again by
// -update. So what QEMU writes is read where QEMU is not.
var goldens = []golden{
	{"v2", goldenContent, []string{"-o", "compat=0.10,cluster_size=4k"}},
	{"v3", goldenContent, []string{"-o", "compat=1.1,cluster_size=512"}},
	{"v2-zlib", goldenContent, []string{"-c", "-o", "compat=0.10,cluster_size=1k"}},
	{"v3-zlib", goldenContent, []string{"-c", "-o", "compat=1.1,cluster_size=64k"}},
	{"v3-zstd", goldenContent, []string{"-c", "-o", "compression_type=zstd,cluster_size=4k"}},
	{"v3-metadata", goldenContent, []string{"-o", "preallocation=metadata,cluster_size=8k"}},
	{"v3-subclusters", goldenContent, []string{"-o", "extended_l2=on,cluster_size=16k"}},
	{"v3-subclusters-zstd", goldenContent, []string{"-c", "-o", "extended_l2=on,cluster_size=16k,compression_type=zstd"}},
	{"tiny-v2", tinyContent, []string{"-o", "compat=0.10,cluster_size=512"}},
	{"tiny-v3", tinyContent, []string{"-o", "preallocation=metadata,cluster_size=512"}},
	{"tiny-zlib", tinyContent, []string{"-c", "-o", "cluster_size=512"}},
	{"tiny-zstd", tinyContent, []string{"-c", "-o", "cluster_size=1k,compression_type=zstd"}},
}

type golden struct {
	name    string
	content func() []byte
	options []string
}

// goldenContent has noise, words, zeros, and an end within a cluster.
func goldenContent() []byte {
	b := make([]byte, 150_016)
	copy(b[512:], noise(11, 3000))
	for i := 20_000; i < 60_000; i += 40 {
		copy(b[i:], "forty bytes of text that compress well, ")
	}
	copy(b[70_000:], noise(12, 9000))
	copy(b[100_000:], "alone")
	copy(b[len(b)-600:], noise(13, 600))
	return b
}

// tinyContent makes images that fuzzing can turn over quickly.
func tinyContent() []byte {
	b := make([]byte, 4608)
	copy(b[100:], noise(14, 500))
	for i := 1024; i < 2500; i += 8 {
		copy(b[i:], "eight by")
	}
	b[len(b)-1] = 1
	return b
}

func (g golden) file(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join("testdata", g.name+".gz")
	if *update {
		g.rewrite(t, path)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (g golden) rewrite(t testing.TB, path string) {
	t.Helper()
	q := newQEMU(t)
	raw := q.file("golden.raw", g.content())
	q.img(append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, g.options...), raw, q.path("golden.qcow2"))...)
	b, err := os.ReadFile(q.path("golden.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}
