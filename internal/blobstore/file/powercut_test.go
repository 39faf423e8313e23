package file

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/blobtest"
	"cairn/internal/foldertest"
)

// powercut knows of a folder what a power cut may leave: all that was synced,
// and of the rest anything. A name in a folder that was not synced since it
// changed is there or is not, as at any moment since; bytes that were not synced
// are torn. That is less than filesystems promise.
type powercut struct {
	t      testing.TB
	dir    string
	out    string // where images go
	inodes map[uint64]*inode
	names  map[string]map[uint64]bool // path → inodes that it may name; 0: it is not there
	images int
	moment func(before string) // called before each sync and link, when all is noted
}

// inode is a file's bytes; nil synced: a folder, or nothing was synced yet.
type inode struct {
	now    []byte
	synced []byte
	folder bool
}

// watch puts the powercut between a store and the system.
func (p *powercut) watch(s *Store) {
	real := s.sys
	p.dir = s.dir
	p.names = map[string]map[uint64]bool{}
	p.inodes = map[uint64]*inode{}
	p.look()
	p.settle(".") // as Open leaves it
	p.settle(tmpDir)
	s.sys = syscalls{
		fdatasync: func(f *os.File) error {
			p.at("fdatasync")
			var st unix.Stat_t
			if err := unix.Fstat(int(f.Fd()), &st); err != nil {
				return err
			}
			p.inodes[st.Ino].synced = bytes.Clone(p.inodes[st.Ino].now)
			return real.fdatasync(f)
		},
		fsyncDir: func(path string) error {
			p.at("fsync of a folder")
			if rel, err := filepath.Rel(p.dir, path); err == nil {
				p.settle(rel)
			}
			return real.fsyncDir(path)
		},
		link: func(from, to string) error {
			p.at("link")
			return real.link(from, to)
		},
	}
}

func (p *powercut) at(what string) {
	p.look()
	if p.moment != nil {
		p.moment(what)
	}
}

// look notes what every name of the folder names now.
func (p *powercut) look() {
	p.t.Helper()
	there := map[string]bool{}
	err := filepath.WalkDir(p.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == p.dir {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		n := p.inodes[st.Ino]
		if n == nil {
			n = &inode{folder: d.IsDir()}
			p.inodes[st.Ino] = n
		}
		if !n.folder {
			if n.now, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		rel, err := filepath.Rel(p.dir, path)
		if err != nil {
			return err
		}
		there[rel] = true
		p.may(rel, st.Ino)
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
	for name := range p.names {
		if !there[name] {
			p.may(name, 0)
		}
	}
}

func (p *powercut) may(name string, ino uint64) {
	if p.names[name] == nil {
		p.names[name] = map[uint64]bool{0: true} // it was not there before
	}
	p.names[name][ino] = true
}

// settle makes what the folder holds now the only thing that it may hold.
func (p *powercut) settle(folder string) {
	p.t.Helper()
	for name := range p.names {
		if filepath.Dir(name) != folder {
			continue
		}
		now := uint64(0)
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(p.dir, name), &st); err == nil {
			now = st.Ino
		} else if !errors.Is(err, unix.ENOENT) {
			p.t.Fatal(err)
		}
		p.names[name] = map[uint64]bool{now: true}
	}
}

// image makes a folder that a power cut now may leave. unit 0: what was not
// synced is lost altogether.
func (p *powercut) image(unit int, rng *rand.Rand) string {
	p.t.Helper()
	p.images++
	out := filepath.Join(p.out, fmt.Sprint(p.images))
	if err := os.MkdirAll(filepath.Join(out, tmpDir), dirMode); err != nil {
		p.t.Fatal(err)
	}
	first := map[uint64]string{}
	for _, name := range slices.Sorted(maps.Keys(p.names)) { // folders before what is in them
		may := slices.Sorted(maps.Keys(p.names[name]))
		ino := may[rng.IntN(len(may))]
		path := filepath.Join(out, name)
		if _, err := os.Stat(filepath.Dir(path)); ino == 0 || err != nil {
			continue
		}
		n := p.inodes[ino]
		var err error
		switch {
		case n.folder:
			err = os.MkdirAll(path, dirMode)
		case first[ino] != "":
			err = os.Link(first[ino], path)
		default:
			first[ino] = path
			err = os.WriteFile(path, n.torn(unit, rng), 0o600)
		}
		if err != nil {
			p.t.Fatal(err)
		}
	}
	return out
}

// torn is the file with some of its unsynced bytes.
func (n *inode) torn(unit int, rng *rand.Rand) []byte {
	if n.synced != nil && bytes.Equal(n.synced, n.now) {
		return n.synced
	}
	if unit == 0 {
		return n.synced
	}
	out := make([]byte, rng.IntN(len(n.now)+1))
	copy(out, n.synced)
	for at := 0; at < len(out); at += unit {
		if rng.IntN(2) == 0 {
			copy(out[at:min(at+unit, len(out))], n.now[at:])
		}
	}
	return out
}

// TestPowerCut cuts the power before every sync and link of random histories
// of Puts and Deletes. What was acknowledged is there, or gone; no blob is ever
// seen in part; and the folder opens and goes on.
func TestPowerCut(t *testing.T) {
	seeds := 6
	if os.Getenv("CAIRN_LONG") == "1" {
		seeds = 24
	}
	moments, images := 0, 0
	for seed := range seeds {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			m, i := cutHistory(t, uint64(seed))
			moments, images = moments+m, images+i
		})
	}
	t.Logf("%d histories, %d moments, %d folders", seeds, moments, images)
}

func cutHistory(t *testing.T, seed uint64) (moments, images int) {
	rng := rand.New(rand.NewPCG(seed, 3))
	dir := foldertest.InMemory(t)
	s := openAt(t, filepath.Join(dir, "blobs"))
	p := &powercut{t: t, out: filepath.Join(dir, "cut")}
	p.watch(s)
	want := &promised{sure: map[string][]byte{}, maybe: map[string][]byte{}}
	p.moment = func(before string) {
		moments++
		for _, unit := range []int{0, 512, 4096} {
			for range 3 {
				want.check(t, p.image(unit, rng), before)
			}
		}
	}
	for i := range 25 {
		name := fmt.Sprintf("%d/%d", rng.IntN(3), rng.IntN(4))
		if _, there := want.sure[name]; there {
			want.maybe[name] = want.sure[name]
			delete(want.sure, name)
			if err := s.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			delete(want.maybe, name)
			continue
		}
		b := blobtest.Bytes(seed<<8+uint64(i), rng.IntN(20000))
		want.maybe[name] = b
		if err := s.Put(t.Context(), name, b[:len(b)/2], b[len(b)/2:]); err != nil {
			t.Fatal(err)
		}
		want.sure[name] = b
		delete(want.maybe, name)
	}
	p.at("the end")
	return moments, p.images
}

// promised is what the answers so far promise.
type promised struct {
	sure  map[string][]byte // acknowledged
	maybe map[string][]byte // being put or deleted
}

// check opens what a power cut left.
func (w *promised) check(t *testing.T, dir, before string) {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatalf("cut before %s: %v", before, err)
	}
	defer func() {
		s.Close()
		os.RemoveAll(dir)
	}()
	wantNoTemp(t, s)
	found := map[string]bool{}
	err = s.List(t.Context(), "", func(i blobstore.Info) error {
		found[i.Name] = true
		got := make([]byte, i.Size)
		if _, err := s.ReadAt(t.Context(), i.Name, got, 0); err != nil {
			return err
		}
		want, ok := w.sure[i.Name]
		if !ok {
			want, ok = w.maybe[i.Name]
		}
		if !ok || !bytes.Equal(got, want) {
			t.Errorf("cut before %s: %s has %d bytes, which are not the %d that were put (known: %v)", before, i.Name, len(got), len(want), ok)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("cut before %s: %v", before, err)
	}
	for name := range w.sure {
		if !found[name] {
			t.Errorf("cut before %s: %s was acknowledged and is gone", before, name)
		}
	}
	for name, b := range w.maybe {
		if err := s.Put(t.Context(), name, b); found[name] != errors.Is(err, blobstore.ErrExists) || err != nil && !found[name] {
			t.Errorf("cut before %s: put %s again, there: %v: %v", before, name, found[name], err)
		}
	}
}
