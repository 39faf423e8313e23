package e2e

import (
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"cairn/test/e2e/harness"
)

// TestSoak does everything at once for as long as CAIRN_SOAK says (make soak:
// 30 minutes): owners write to their volumes, take points, roll back, clone,
// delete and bring back, each beside a model of what is theirs, while the
// repository is pruned, scrubbed and exported from, the recycle bin is emptied,
// and the server is stopped and killed.
func TestSoak(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("CAIRN_SOAK"))
	if err != nil {
		t.Skip("skipped: set CAIRN_SOAK to how long it is to last, like 30m (make soak)")
	}
	s := &soak{srv: serve(t, "--jobs", "4"), end: time.Now().Add(length), r: harness.Rand(harness.Seed(t))}
	for i := range 4 {
		s.owners = append(s.owners, &owner{soak: s, r: rand.New(rand.NewPCG(s.r.Uint64(), uint64(i))), world: &world{srv: s.srv, dir: t.TempDir()}})
	}
	// All of these go on at once only with -parallel 7 or more.
	t.Run("all", func(t *testing.T) {
		for i, o := range s.owners {
			t.Run("owner "+strconv.Itoa(i), o.live)
		}
		t.Run("prune", s.again("repository/prune"))
		t.Run("scrub", s.again("repository/scrub"))
		t.Run("trouble", s.trouble)
	})
	for _, o := range s.owners {
		o.checkContent(t)
		o.checkPaths(t)
		t.Logf("%d points of %d volumes", len(o.points), len(o.vols))
	}
	s.srv.API().ScrubClean(t)
	t.Logf("server started %d times, bin emptied %d times, %d prunes and scrubs beside the rest", s.srv.Starts, s.emptied, s.done)
}

// soak is what all that goes on at once shares.
type soak struct {
	srv    *harness.Server
	end    time.Time
	r      *rand.Rand // before the start, and trouble's
	owners []*owner

	// calm is held for reading by owners during a step, and for writing while
	// the server goes away or the bin is emptied, so that models stay simple.
	// Prunes, scrubs and exports do not hold it: they are cut off.
	calm    sync.RWMutex
	emptied int // guarded by calm

	mu   sync.Mutex // guards done
	done int
}

func (s *soak) over() bool { return !time.Now().Before(s.end) }

// owner is one user with volumes of his own.
type owner struct {
	*world
	soak *soak
	r    *rand.Rand
}

func (o *owner) live(t *testing.T) {
	t.Parallel()
	content := harness.NewImage(24 * mib)
	content.Apply(harness.Edit{Kind: harness.WriteNoise, Len: 8 * mib, Seed: o.r.Uint64()})
	o.calmly(func() {
		o.register(t, content)
		o.register(t, harness.NewImage(3*mib+512))
	})
	for !o.soak.over() && !t.Failed() {
		o.calmly(func() { o.step(t) })
	}
}

func (o *owner) calmly(do func()) {
	o.soak.calm.RLock()
	defer o.soak.calm.RUnlock()
	do()
}

func (o *owner) step(t *testing.T) {
	live, bin := o.livePoints(""), o.inBin()
	v := o.vols[o.r.IntN(2)]
	switch what := o.r.IntN(12); {
	case what < 3:
		v.edit(t, harness.RandomEdit(o.r, v.content.Size()))
	case what < 6 && len(live) < 25:
		o.create(t, o.r.IntN(6) == 0, v)
	case what == 6 && len(live) < 25:
		o.create(t, false, o.vols[0], o.vols[1])
	case what == 7 && len(live) > 0:
		o.apply(t, live[o.r.IntN(len(live))])
		o.wantVolume(t, v)
	case what == 8 && len(live) > 3:
		o.remove(t, live[o.r.IntN(len(live))])
	case what == 9 && len(bin) > 0:
		o.undelete(t, bin[o.r.IntN(len(bin))])
	case what == 10 && len(live) > 0:
		p := live[o.r.IntN(len(live))]
		c := o.clone(t, p)
		o.api().WantContent(t, "volumes", c.id, p.content)
		o.forget(t, c)
	case len(live) > 0:
		p := live[o.r.IntN(len(live))]
		o.api().WantContent(t, "volume_snapshots", p.id, p.content)
	}
	o.checkRows(t)
}

// again posts a call again and again. It may be refused, cut off or fail
// because the server went away; it must never find damage.
func (s *soak) again(path string) func(t *testing.T) {
	return func(t *testing.T) {
		t.Parallel()
		for !s.over() && !t.Failed() {
			r, err := s.srv.API().TrySend(http.MethodPost, path, nil)
			if err != nil || r.Status != http.StatusOK {
				time.Sleep(50 * time.Millisecond)
				continue
			}
			j := r.Begin(t)
			for !j.Ended() && !s.over() {
				time.Sleep(20 * time.Millisecond)
				if r, err := s.srv.API().Try(harness.Request{Method: http.MethodGet, Path: "job/" + j.ID}); err == nil && r.Status == http.StatusOK {
					r.Into(t, &j)
				}
			}
			if j.Status == "failed" {
				t.Errorf("%s: %s\n%s", path, j.Info, j.Extra)
			}
			s.mu.Lock()
			s.done++
			s.mu.Unlock()
		}
	}
}

// trouble takes the server away, or what the bin holds, from time to time.
func (s *soak) trouble(t *testing.T) {
	t.Parallel()
	for !s.over() && !t.Failed() {
		time.Sleep(time.Duration(500+s.r.IntN(3000)) * time.Millisecond)
		s.calm.Lock()
		switch s.r.IntN(3) {
		case 0:
			s.srv.Stop(t)
			s.srv.Run(t)
		case 1:
			s.srv.Kill(t)
			s.srv.Run(t)
		default:
			s.emptyBin(t)
		}
		s.calm.Unlock()
	}
}

// emptyBin waits its turn behind a prune or scrub that goes on already.
func (s *soak) emptyBin(t *testing.T) {
	ok := harness.Poll(time.Minute, func() bool {
		r, err := s.srv.API().TrySend(http.MethodPost, "repository/prune?empty_bin=1", nil)
		if err != nil || r.Status != http.StatusOK {
			return false
		}
		s.srv.API().OK(t, r.Begin(t))
		return true
	})
	if !ok {
		t.Fatal("the bin could not be emptied within a minute")
	}
	s.emptied++
	for _, o := range s.owners {
		for _, p := range o.points {
			p.ceased = p.ceased || p.deleted
		}
	}
}
