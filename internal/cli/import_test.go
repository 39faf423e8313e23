package cli_test

import (
	"context"
	"os"
	"strconv"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"cairn/internal/extent"
	"cairn/internal/qcow2"
)

// flat is bytes as an image without holes.
type flat []byte

func (f flat) Size() int64 { return int64(len(f)) }

func (f flat) Data(_ context.Context, off int64) (extent.Range, error) {
	return extent.Range{Off: off, Len: f.Size() - off}, nil
}

func (f flat) ReadAt(_ context.Context, buf []byte, off int64) error {
	copy(buf, f[off:])
	return nil
}

func makeQcow2(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: qcow2 RAW FILE")
	}
	out, err := os.Create(ts.MkAbs(args[1]))
	ts.Check(err)
	defer out.Close()
	ts.Check(qcow2.Write(context.Background(), out, flat(ts.ReadFile(args[0]))))
}

func spoil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: spoil FILE AT BYTE")
	}
	at, err := strconv.ParseInt(args[1], 0, 64)
	ts.Check(err)
	b, err := strconv.ParseUint(args[2], 0, 8)
	ts.Check(err)
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_WRONLY, 0)
	ts.Check(err)
	defer f.Close()
	_, err = f.WriteAt([]byte{byte(b)}, at)
	ts.Check(err)
}

func lockAsQEMU(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: running FILE")
	}
	f, err := os.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Defer(func() { f.Close() })
	l := unix.Flock_t{Type: unix.F_RDLCK, Start: 101, Len: 1}
	ts.Check(unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l))
}
