package job_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cairn/internal/errs"
	"cairn/internal/job"
)

// handler is a job made of two functions.
type handler struct {
	do   func(ctx context.Context, run *job.Run) error
	undo func(ctx context.Context, run *job.Run, out job.Outcome) error
}

func (h handler) Do(ctx context.Context, run *job.Run) error { return h.do(ctx, run) }

func (h handler) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	return h.undo(ctx, run, out)
}

// world is one database and the processes that come and go over it.
type world struct {
	*rows
	t *testing.T
}

func (w world) finishAs(status job.Status) func(context.Context, *job.Run) error {
	return func(_ context.Context, run *job.Run) error {
		return w.finish(run.ID(), run.Term(), job.Outcome{Status: status, Time: time.Now()})
	}
}

func (w world) end(_ context.Context, run *job.Run, out job.Outcome) error {
	return w.finish(run.ID(), run.Term(), out)
}

// process is one run of the program; stop ends it as SIGTERM does.
type process struct {
	*job.Runner
	stop func()
}

func (w world) start(owner string, h handler) process {
	if h.undo == nil {
		h.undo = w.end
	}
	r := job.NewRunner(w.rows, map[job.Action]job.Handler{job.CreateSnapshots: h}, job.Options{
		Owner: owner, Load: w.Load,
		OutcomeOf: func(_ job.Job, cause error) job.Outcome {
			return job.Outcome{Status: job.Failed, Info: cause.Error()}
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx) }()
	return process{Runner: r, stop: func() { cancel(); <-done }}
}

// in runs fn in a bubble with a clock of its own, so that no waiting decides
// anything.
func in(t *testing.T, fn func(w world), jobs ...job.Job) {
	synctest.Test(t, func(t *testing.T) { fn(world{newRows(jobs...), t}) })
}

func pending(id string) job.Job { return job.Job{ID: id, Action: job.CreateSnapshots} }

func (w world) want(id string, status job.Status, info string) {
	w.t.Helper()
	j, err := w.Load(context.Background(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	if j.Status != status || !strings.Contains(j.Info, info) {
		w.t.Errorf("job %s is %s (%q), want %s (%q)", id, j.Status, j.Info, status, info)
	}
}

func TestEachStatusChangeIsPublishedOnce(t *testing.T) {
	in(t, func(w world) {
		p := w.start("p1", handler{do: w.finishAs(job.Successful)})
		ctx, cancel := context.WithCancel(context.Background())
		feed := p.Subscribe(ctx)
		for i := range 20 {
			id := fmt.Sprintf("j%02d", i)
			if _, err := p.Enqueue(func() (job.Job, error) {
				w.insert(pending(id))
				return w.Load(ctx, id)
			}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		p.stop()
		cancel()
		got := map[string][]job.Status{}
		for j := range feed {
			got[j.ID] = append(got[j.ID], j.Status)
		}
		if len(got) != 20 {
			t.Errorf("%d jobs were published", len(got))
		}
		for id, s := range got {
			if !slices.Equal(s, []job.Status{job.Pending, job.Working, job.Successful}) {
				t.Errorf("%s: %v", id, s)
			}
		}
	})
}

func TestWhatStopsAJobFailsIt(t *testing.T) {
	tests := []struct {
		name string
		do   func(context.Context, *job.Run) error
		info string
	}{
		{"error", func(context.Context, *job.Run) error { return errs.New(errs.Conflict, "vol-A shrank") }, "vol-A shrank"},
		{"panic", func(context.Context, *job.Run) error { panic("oops") }, "fault of its own"},
		{"no end", func(context.Context, *job.Run) error { return nil }, "without ending"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in(t, func(w world) {
				p := w.start("p1", handler{do: tt.do})
				synctest.Wait()
				w.want("a", job.Failed, tt.info)
				p.stop()
			}, pending("a"))
		})
	}
}

func TestUnknownActionFails(t *testing.T) {
	in(t, func(w world) {
		p := w.start("p1", handler{do: w.finishAs(job.Successful)})
		synctest.Wait()
		// Nobody knows how to undo it either: it waits for a server that does.
		w.want("a", job.Working, "")
		w.want("b", job.Successful, "")
		p.stop()
	}, job.Job{ID: "a", Action: "FlyToTheMoon"}, pending("b"))
}

func TestCancel(t *testing.T) {
	wait := func(ctx context.Context, _ *job.Run) error { <-ctx.Done(); return ctx.Err() }
	t.Run("before the claim", func(t *testing.T) {
		in(t, func(w world) {
			if _, err := w.RequestCancel(context.Background(), "a"); err != nil {
				t.Fatal(err)
			}
			p := w.start("p1", handler{do: func(context.Context, *job.Run) error { t.Error("it was begun"); return nil }})
			synctest.Wait()
			w.want("a", job.Failed, "cancelled")
			p.stop()
		}, pending("a"))
	})
	t.Run("while it runs", func(t *testing.T) {
		in(t, func(w world) {
			p := w.start("p1", handler{do: wait})
			synctest.Wait()
			if _, err := w.RequestCancel(context.Background(), "a"); err != nil {
				t.Fatal(err)
			}
			p.Cancel("a")
			synctest.Wait()
			w.want("a", job.Failed, "cancelled")
			p.stop()
		}, pending("a"))
	})
	t.Run("noticed in the row", func(t *testing.T) {
		in(t, func(w world) {
			p := w.start("p1", handler{do: wait})
			synctest.Wait()
			if _, err := w.RequestCancel(context.Background(), "a"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			w.want("a", job.Failed, "cancelled")
			p.stop()
		}, pending("a"))
	})
	t.Run("past the point of no return", func(t *testing.T) {
		in(t, func(w world) {
			p := w.start("p1", handler{do: func(ctx context.Context, run *job.Run) error {
				if err := run.SaveState(ctx, "begun", true); err != nil {
					return err
				}
				return wait(ctx, run)
			}})
			synctest.Wait()
			if _, err := w.RequestCancel(context.Background(), "a"); !errors.Is(err, job.ErrNoCancel) {
				t.Errorf("cancel: %v", err)
			}
			p.stop()
		}, pending("a"))
	})
}

func TestAStopLeavesTheJobToTheNextProcess(t *testing.T) {
	in(t, func(w world) {
		p := w.start("p1", handler{
			do: func(ctx context.Context, run *job.Run) error {
				if err := run.SaveState(ctx, 7, false); err != nil {
					return err
				}
				run.Progress(5, 10)
				<-ctx.Done()
				return ctx.Err()
			},
			undo: func(context.Context, *job.Run, job.Outcome) error { t.Error("a stop undid the job"); return nil },
		})
		time.Sleep(time.Second)
		if live, ok := p.Live("a"); !ok || live.Fraction() != 0.5 {
			t.Errorf("live progress %v, %v", live, ok)
		}
		p.stop()
		w.want("a", job.Working, "")
		p = w.start("p2", handler{do: func(ctx context.Context, run *job.Run) error {
			var state int
			if err := run.LoadState(&state); err != nil || state != 7 || run.Term() != 2 {
				t.Errorf("the second term %d sees state %d: %v", run.Term(), state, err)
			}
			return w.finishAs(job.Successful)(ctx, run)
		}})
		synctest.Wait()
		w.want("a", job.Successful, "")
		p.stop()
	}, pending("a"))
}

func TestUndoIsTriedUntilItSucceedsAcrossRestarts(t *testing.T) {
	in(t, func(w world) {
		tries := 0
		p := w.start("p1", handler{
			do: func(context.Context, *job.Run) error { return errors.New("first cause") },
			undo: func(context.Context, *job.Run, job.Outcome) error {
				tries++
				if tries%2 == 0 {
					panic("the repository does not answer")
				}
				return errors.New("the repository does not answer")
			},
		})
		time.Sleep(time.Minute)
		w.want("a", job.Working, "")
		if tries < 3 {
			t.Errorf("undone %d times in a minute", tries)
		}
		p.stop()
		p = w.start("p2", handler{do: func(context.Context, *job.Run) error { t.Error("it was done again"); return nil }})
		synctest.Wait()
		w.want("a", job.Failed, "first cause")
		p.stop()
	}, pending("a"))
}

func TestAWaitingUndoHoldsNoSlot(t *testing.T) {
	var jobs []job.Job
	for i := range 8 {
		jobs = append(jobs, pending(fmt.Sprintf("bad%d", i)))
	}
	in(t, func(w world) {
		var healed atomic.Bool
		p := w.start("p1", handler{
			do: func(ctx context.Context, run *job.Run) error {
				if run.ID() == "good" {
					return w.finishAs(job.Successful)(ctx, run)
				}
				return errors.New("broken")
			},
			undo: func(ctx context.Context, run *job.Run, out job.Outcome) error {
				if !healed.Load() {
					return errors.New("cannot undo")
				}
				return w.end(ctx, run, out)
			},
		})
		time.Sleep(10 * time.Second)
		w.want("good", job.Successful, "")
		healed.Store(true)
		time.Sleep(5 * time.Minute)
		for i := range 8 {
			w.want(fmt.Sprintf("bad%d", i), job.Failed, "broken")
		}
		p.stop()
	}, append(jobs, pending("good"))...)
}

// Jobs that wait for others do not keep these from being worked on.
func TestAWaitingJobHoldsNoSlot(t *testing.T) {
	var jobs []job.Job
	for i := range 8 {
		jobs = append(jobs, pending(fmt.Sprintf("waits%d", i)))
	}
	in(t, func(w world) {
		done := make(chan struct{})
		var atOnce, most atomic.Int32
		p := w.start("p1", handler{do: func(ctx context.Context, run *job.Run) error {
			if run.ID() == "good" {
				close(done)
				return w.finishAs(job.Successful)(ctx, run)
			}
			if err := run.Aside(func() error { <-done; return nil }); err != nil {
				return err
			}
			most.Store(max(most.Load(), atOnce.Add(1)))
			time.Sleep(time.Second)
			atOnce.Add(-1)
			return w.finishAs(job.Successful)(ctx, run)
		}})
		time.Sleep(time.Minute)
		w.want("good", job.Successful, "")
		for i := range 8 {
			w.want(fmt.Sprintf("waits%d", i), job.Successful, "")
		}
		if n := most.Load(); n > 4 {
			t.Errorf("%d jobs were worked on at once", n)
		}
		p.stop()
	}, append(jobs, pending("good"))...)
}

func TestAFencedWorkerChangesNothing(t *testing.T) {
	in(t, func(w world) {
		p := w.start("p1", handler{
			do: func(ctx context.Context, _ *job.Run) error { <-ctx.Done(); return ctx.Err() },
			undo: func(context.Context, *job.Run, job.Outcome) error {
				t.Error("a fenced worker undid the job")
				return nil
			},
		})
		synctest.Wait()
		w.mu.Lock()
		w.jobs["a"].Term, w.jobs["a"].Owner, w.elsewhere = 2, "p2", "p2"
		w.mu.Unlock()
		time.Sleep(10 * time.Second)
		if _, ok := p.Live("a"); ok {
			t.Error("the fenced job still runs")
		}
		w.want("a", job.Working, "")
		p.stop()
	}, pending("a"))
}

func TestAnUnknownOutcomeIsReadBack(t *testing.T) {
	in(t, func(w world) {
		subscribed := make(chan struct{}) // the runner starts with the job at once
		p := w.start("p1", handler{do: func(ctx context.Context, run *job.Run) error {
			<-subscribed
			if err := w.finishAs(job.Successful)(ctx, run); err != nil {
				return err
			}
			return errors.New("the answer to the commit was lost")
		}})
		ctx, cancel := context.WithCancel(context.Background())
		feed := p.Subscribe(ctx)
		close(subscribed)
		synctest.Wait()
		w.want("a", job.Successful, "")
		p.stop()
		cancel()
		var last job.Status
		for j := range feed {
			last = j.Status
		}
		if last != job.Successful {
			t.Errorf("the last news was %q", last)
		}
	}, pending("a"))
}

func TestProgressIsWrittenSeldomAndNeverFalls(t *testing.T) {
	in(t, func(w world) {
		p := w.start("p1", handler{do: func(ctx context.Context, run *job.Run) error {
			for i := range int64(1000) {
				run.Progress(i%700, 1000)
				time.Sleep(10 * time.Millisecond)
			}
			run.Progress(2000, 1000)
			if err := run.Flush(ctx); err != nil {
				return err
			}
			return w.finishAs(job.Successful)(ctx, run)
		}})
		time.Sleep(time.Minute)
		j, _ := w.Load(context.Background(), "a")
		if j.Progress != (job.Progress{DoneBytes: 1000, TotalBytes: 1000}) {
			t.Errorf("progress at the end: %+v", j.Progress)
		}
		if w.saves < 10 || w.saves > 25 {
			t.Errorf("progress was written %d times in ten seconds", w.saves)
		}
		p.stop()
	}, pending("a"))
}

func TestInline(t *testing.T) {
	owned := func(w world) func(string) (job.Job, error) {
		return func(owner string) (job.Job, error) {
			j := job.Job{ID: "a", Action: job.CreateSnapshots, Status: job.Working, Owner: owner, Term: 1}
			w.insert(j)
			return j, nil
		}
	}
	never := handler{do: func(context.Context, *job.Run) error { return errors.New("the stream is gone") }}
	t.Run("stored", func(t *testing.T) {
		in(t, func(w world) {
			p := w.start("p1", never)
			if _, err := p.Inline(context.Background(), owned(w), w.finishAs(job.Successful)); err != nil {
				t.Fatal(err)
			}
			w.want("a", job.Successful, "")
			p.stop()
		})
	})
	t.Run("client gone", func(t *testing.T) {
		in(t, func(w world) {
			p := w.start("p1", never)
			ctx, cancel := context.WithCancel(context.Background())
			time.AfterFunc(time.Second, cancel)
			if _, err := p.Inline(ctx, owned(w), func(ctx context.Context, _ *job.Run) error { <-ctx.Done(); return ctx.Err() }); err != nil {
				t.Fatal(err)
			}
			w.want("a", job.Failed, "client went away")
			p.stop()
		})
	})
	t.Run("stopped midway", func(t *testing.T) {
		in(t, func(w world) {
			p := w.start("p1", never)
			returned := make(chan error)
			go func() {
				_, err := p.Inline(context.Background(), owned(w), func(ctx context.Context, _ *job.Run) error { <-ctx.Done(); return ctx.Err() })
				returned <- err
			}()
			synctest.Wait()
			p.stop()
			if err := <-returned; err != nil {
				t.Error(err)
			}
			w.want("a", job.Working, "")
			late := func(string) (job.Job, error) { return job.Job{ID: "b"}, nil }
			if _, err := p.Inline(context.Background(), late, nil); !errs.Is(err, errs.Unavailable) {
				t.Errorf("after the stop: %v", err)
			}
			p = w.start("p2", never)
			synctest.Wait()
			w.want("a", job.Failed, "stream is gone")
			p.stop()
		})
	})
	t.Run("inserted, and the answer lost", func(t *testing.T) {
		in(t, func(w world) {
			p := w.start("p1", never)
			lost := errors.New("connection reset")
			_, err := p.Inline(context.Background(), func(owner string) (job.Job, error) {
				j, _ := owned(w)(owner)
				return j, lost
			}, w.finishAs(job.Successful))
			if !errors.Is(err, lost) {
				t.Errorf("got %v", err)
			}
			time.Sleep(10 * time.Second)
			w.want("a", job.Failed, "stream is gone")
			p.stop()
		})
	})
}

// A claim that was committed, and whose answer was lost, leaves a job that
// works and that nobody carries out.
func TestTheAnswerToAClaimIsLost(t *testing.T) {
	in(t, func(w world) {
		w.lose = map[string]int{"claim": 1}
		p := w.start("p1", handler{do: w.finishAs(job.Successful)})
		time.Sleep(10 * time.Second)
		w.want("a", job.Successful, "")
		if j, _ := w.Load(context.Background(), "a"); j.Term != 2 {
			t.Errorf("it ended in term %d, must be claimed anew", j.Term)
		}
		p.stop()
	}, pending("a"))
}

func TestADatabaseThatFailsForAWhile(t *testing.T) {
	in(t, func(w world) {
		down := true
		w.fail = func(string) error {
			if down {
				return errors.New("disk I/O error")
			}
			return nil
		}
		p := w.start("p1", handler{do: w.finishAs(job.Successful)})
		time.Sleep(10 * time.Second)
		w.mu.Lock()
		down = false
		w.mu.Unlock()
		time.Sleep(10 * time.Second)
		w.want("a", job.Successful, "")
		p.stop()
	}, pending("a"))
}

func TestASlowSubscriberLosesTheOldest(t *testing.T) {
	b := job.NewBroker()
	ctx, cancel := context.WithCancel(context.Background())
	feed := b.Subscribe(ctx)
	for i := range 1000 {
		b.Publish(job.Job{ID: fmt.Sprint(i)})
	}
	cancel()
	var got []string
	for j := range feed {
		got = append(got, j.ID)
	}
	if len(got) == 0 || len(got) > 100 || got[len(got)-1] != "999" {
		t.Errorf("got %v", got)
	}
	b.Publish(job.Job{}) // nobody listens any more
}
