package file

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/internal/errs"
	"cairn/internal/volume"
)

// registered makes a driver and a registered file with content.
func registered(t *testing.T) (*Registered, volume.Spec) {
	t.Helper()
	path := sparse(t, t.TempDir(), 1<<20)
	change(t, path, []byte("content"), 0)
	r, err := NewRegistered(t.TempDir())
	ok(t, err)
	return r, register(t, r, path)
}

func register(t *testing.T, r *Registered, path string) volume.Spec {
	t.Helper()
	p, err := r.Probe(t.Context(), path)
	ok(t, err)
	return volume.Spec{ID: "vol-TEST0001", Path: p.Path, Identity: p.Identity, SizeBytes: p.SizeBytes}
}

func freeze(t *testing.T, r *Registered, s volume.Spec) volume.Instant {
	t.Helper()
	in, err := r.Freeze(t.Context(), "hold", []volume.Spec{s}, nil)
	ok(t, err)
	t.Cleanup(func() { ok(t, in.Close()) })
	return in
}

// wantKind demands a kind and a sentence that names the volume, not its path.
func wantKind(t *testing.T, err error, k errs.Kind, s volume.Spec) {
	t.Helper()
	if !errs.Is(err, k) {
		t.Fatalf("got %v (%v), want kind %v", err, errs.KindOf(err), k)
	}
	msg := errs.Message(err)
	if !strings.Contains(msg, s.ID) || strings.Contains(msg, s.Path) {
		t.Fatalf("message %q must name %s and not its path", msg, s.ID)
	}
	if k == errs.Busy && !strings.HasSuffix(msg, "please try later") {
		t.Fatalf("message %q must end in “please try later”", msg)
	}
}

func wantChanged(t *testing.T, err error, s volume.Spec) {
	t.Helper()
	wantKind(t, err, errs.Conflict, s)
	if !errors.Is(err, volume.ErrChanged) {
		t.Fatalf("got %v, want ErrChanged", err)
	}
}

// TestOpenElsewhere: who has the file open when we come.
func TestOpenElsewhere(t *testing.T) {
	for _, c := range []struct {
		role           string
		freeze, target bool // allowed
	}{
		{"reader", true, false},
		{"writer", false, false},
		{"mapper", false, false},
		{"flock", false, false},
	} {
		t.Run(c.role, func(t *testing.T) {
			r, s := registered(t)
			a := start(t, c.role, s.Path)
			try := func(freeze, target bool) {
				t.Helper()
				in, err := r.Freeze(t.Context(), "hold", []volume.Spec{s}, nil)
				if freeze {
					ok(t, err)
					ok(t, in.Check(t.Context()))
					ok(t, in.Close())
				} else {
					wantKind(t, err, errs.Busy, s)
				}
				g, err := r.OpenTarget(t.Context(), s)
				if target {
					ok(t, err)
					ok(t, g.Close())
				} else {
					wantKind(t, err, errs.Busy, s)
				}
			}
			try(c.freeze, c.target)
			a.stop(t)
			try(true, true)
		})
	}
}

// TestComesLater: who comes while we read. What may have changed anything
// fails the point; what cannot, does not.
func TestComesLater(t *testing.T) {
	held := func(role string) func(*testing.T, volume.Spec) {
		return func(t *testing.T, s volume.Spec) { start(t, role, s.Path).stop(t) }
	}
	once := func(role string) func(*testing.T, volume.Spec) {
		return func(t *testing.T, s volume.Spec) { act(t, role, s.Path) }
	}
	for _, c := range []struct {
		name    string
		comes   func(*testing.T, volume.Spec)
		changed bool
	}{
		{"nobody", func(*testing.T, volume.Spec) {}, false},
		{"reader", held("reader"), false},
		{"writer who writes nothing", held("writer"), true},
		{"mapper", held("mapper"), true},
		{"write", once("poke"), true},
		{"truncate", once("truncate"), true},
		{"rename over", func(t *testing.T, s volume.Spec) {
			other := s.Path + ".new"
			ok(t, os.WriteFile(other, make([]byte, 1<<20), 0o600))
			ok(t, os.Rename(other, s.Path))
		}, true},
		{"removal", func(t *testing.T, s volume.Spec) { ok(t, os.Remove(s.Path)) }, true},
		{"rename away", func(t *testing.T, s volume.Spec) { ok(t, os.Rename(s.Path, s.Path+".old")) }, true},
		{"old times set back", func(t *testing.T, s volume.Spec) {
			st, err := os.Stat(s.Path)
			ok(t, err)
			ok(t, os.Chtimes(s.Path, st.ModTime(), st.ModTime()))
		}, true}, // ctime cannot be set back
	} {
		t.Run(c.name, func(t *testing.T) {
			r, s := registered(t)
			in := freeze(t, r, s)
			if in.Durable() {
				t.Skip("skipped: temporary files are on a filesystem with reflinks")
			}
			ok(t, in.Source(0).ReadAt(t.Context(), make([]byte, 4096), 0))
			c.comes(t, s)
			err := in.Check(t.Context())
			if c.changed {
				wantChanged(t, err, s)
				return
			}
			ok(t, err)
		})
	}
}

// TestWriterIsNotHeldUp: who opens the file for writing while we read waits
// for the lease to be let go, not for the job's end.
func TestWriterIsNotHeldUp(t *testing.T) {
	r, s := registered(t)
	in := freeze(t, r, s)
	if in.Durable() {
		t.Skip("skipped: temporary files are on a filesystem with reflinks")
	}
	act(t, "poke", s.Path) // would end after lease-break-time at the earliest, and after Close at the latest
	wantChanged(t, in.Source(0).ReadAt(t.Context(), make([]byte, 10), 0), s)
	in2, err := r.Freeze(t.Context(), "other", []volume.Spec{s}, nil)
	wantKind(t, err, errs.Busy, s) // ours still
	if in2 != nil {
		t.Fatal("an instant came with an error")
	}
}

func TestTruncatedWhileRead(t *testing.T) {
	// Without the lease's notice, as on a filesystem that has none.
	r, s := registered(t)
	in := freeze(t, r, s)
	if in.Durable() {
		t.Skip("skipped: temporary files are on a filesystem with reflinks")
	}
	src := in.Source(0).(*source)
	act(t, "truncate", s.Path)
	wantChanged(t, src.reader.ReadAt(t.Context(), make([]byte, 4096), 512<<10), s)
	wantChanged(t, in.Check(t.Context()), s)
}

func TestGoneOrReplacedBefore(t *testing.T) {
	r, s := registered(t)
	other := s.Path + ".new"
	ok(t, os.WriteFile(other, make([]byte, 1<<20), 0o600))
	all := func(k errs.Kind) {
		t.Helper()
		_, err := r.Size(t.Context(), s)
		wantKind(t, err, k, s)
		_, err = r.Freeze(t.Context(), "hold", []volume.Spec{s}, nil)
		wantKind(t, err, k, s)
		_, err = r.OpenTarget(t.Context(), s)
		wantKind(t, err, k, s)
	}
	ok(t, os.Rename(s.Path, s.Path+".old"))
	all(errs.NotFound)
	ok(t, os.Rename(other, s.Path))
	all(errs.Conflict)
	ok(t, os.Remove(s.Path))
	ok(t, os.Symlink(s.Path+".old", s.Path)) // the very file, by a link
	all(errs.Conflict)
	ok(t, os.Remove(s.Path))
	ok(t, syscall.Mkfifo(s.Path, 0o600))
	all(errs.Conflict)
	ok(t, os.Remove(s.Path))
	ok(t, os.Rename(s.Path+".old", s.Path))
	freeze(t, r, s)
}

// TestSizeNow: a registered file that shrank or grew tells its present size;
// what follows from that is for the service to decide.
func TestSizeNow(t *testing.T) {
	r, s := registered(t)
	for _, n := range []int64{3 << 20, 100} {
		ok(t, os.Truncate(s.Path, n))
		got, err := r.Size(t.Context(), s)
		ok(t, err)
		in := freeze(t, r, s)
		if got != n || in.Source(0).Size() != n {
			t.Fatalf("Size %d, source %d, want %d", got, in.Source(0).Size(), n)
		}
		ok(t, in.Close())
	}
}

func TestIntruderAtTarget(t *testing.T) {
	for _, c := range []struct {
		name  string
		comes func(*testing.T, volume.Spec)
		fails bool
	}{
		{"reader", func(t *testing.T, s volume.Spec) { start(t, "reader", s.Path).stop(t) }, false},
		{"writer", func(t *testing.T, s volume.Spec) { start(t, "writer", s.Path).stop(t) }, true},
		{"truncate", func(t *testing.T, s volume.Spec) { act(t, "truncate", s.Path) }, true},
		{"removal", func(t *testing.T, s volume.Spec) { ok(t, os.Remove(s.Path)) }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, s := registered(t)
			ctx := t.Context()
			g, err := r.OpenTarget(ctx, s)
			ok(t, err)
			defer func() { ok(t, g.Close()) }()
			ok(t, g.WriteAt(ctx, []byte("new"), 0))
			c.comes(t, s)
			err = g.Sync(ctx)
			if !c.fails {
				ok(t, err)
				return
			}
			wantChanged(t, err, s)
			for _, err := range []error{g.Sync(ctx), g.WriteAt(ctx, []byte("x"), 0), g.Zero(ctx, 0, 10)} {
				wantChanged(t, err, s) // latched
			}
		})
	}
}

// TestLeaseComesBack: a reader makes us let the lease go; when it has left,
// a writer is noticed again.
func TestLeaseComesBack(t *testing.T) {
	r, s := registered(t)
	g, err := r.OpenTarget(t.Context(), s)
	ok(t, err)
	defer func() { ok(t, g.Close()) }()
	start(t, "reader", s.Path).stop(t)
	guard := g.(*target).guard
	for range 1000 {
		if guard.intruded() {
			t.Fatal("the reader passed for a writer")
		}
		guard.leaseMu.Lock()
		held := guard.held
		guard.leaseMu.Unlock()
		if held {
			break
		}
		time.Sleep(leaseWatch)
	}
	act(t, "poke", s.Path)
	wantChanged(t, g.Sync(t.Context()), s)
}

// TestUnleased: a server that may not take leases still notices a change.
func TestUnleased(t *testing.T) {
	need(t)
	dir, err := os.MkdirTemp("", "unleased-")
	ok(t, err)
	t.Cleanup(func() { ok(t, os.RemoveAll(dir)) })
	ok(t, os.Chmod(dir, 0o755))
	holds := join(dir, "nobody")
	ok(t, os.Mkdir(holds, 0o700))
	ok(t, os.Chown(holds, 65534, 65534))
	path := sparse(t, dir, 1<<20)
	ok(t, os.Chmod(path, 0o644))
	// The test binary lies where nobody else may go.
	self, err := os.Executable()
	ok(t, err)
	mustRun(t, "install", "-m", "755", self, join(dir, "test"))
	for _, c := range []struct {
		name  string
		comes func()
		want  string
	}{
		{"quiet", func() {}, "check false"},
		{"written", func() { change(t, path, []byte("x"), 0) }, "check true"},
		{"truncated", func() { ok(t, os.Truncate(path, 1<<19)) }, "check true"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := command(t, "unleased", path, join(holds, c.name))
			cmd.Path = join(dir, "test")
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			a := begin(t, "unleased", cmd)
			if a.first != "ready false" {
				t.Fatalf("%q: it got a lease on somebody else's file", a.first)
			}
			c.comes()
			if got := a.stop(t); got != c.want {
				t.Fatalf("%q, want %q", got, c.want)
			}
		})
	}
}
