package cli

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/jedib0t/go-pretty/v6/progress"
	"golang.org/x/term"
)

// lineInterval is how often progress is told where nobody watches live.
const lineInterval = 5 * time.Second

// meter shows on stderr how far something is. set and phase may be called by
// any goroutine, also after stop.
type meter interface {
	set(done, total int64) // bytes; total 0: not known yet
	phase(name string)     // what is being done now
	stop(whole bool)       // the last word: it is done, or it was left
}

// newMeter shows a live bar on a terminal and plain lines elsewhere.
func (s *session) newMeter(what string) meter {
	if f, ok := s.Err.(*os.File); ok && isTerminal(f) {
		return newBar(f, what)
	}
	return &lines{session: s, what: what, begin: time.Now()}
}

// bar is a live bar with bytes, rate and time left.
type bar struct {
	what    string
	writer  progress.Writer
	tracker *progress.Tracker
	ended   chan struct{}

	mu      sync.Mutex // guards the rest, and keeps set from reviving an ended tracker
	total   int64
	stopped bool
}

func newBar(f *os.File, what string) *bar {
	w := progress.NewWriter()
	w.SetOutputWriter(f)
	w.SetAutoStop(true)
	w.SetUpdateFrequency(100 * time.Millisecond)
	w.SetTrackerLength(20)
	if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
		w.SetTerminalWidth(width)
	}
	style := progress.StyleBlocks
	style.Options.ErrorString = "stopped"
	style.Options.DoneString = "done"
	style.Options.PercentFormat = "%3.0f%%"
	style.Options.PercentIndeterminate = "    "
	style.Options.ETAString = "left"
	style.Options.Separator = " "
	style.Options.TimeInProgressPrecision = 100 * time.Millisecond
	style.Options.TimeDonePrecision = 100 * time.Millisecond
	style.Visibility = progress.StyleVisibility{
		ETA: true, Percentage: true, Speed: true, Time: true, Tracker: true, Value: true,
	}
	w.SetStyle(style)
	b := &bar{
		what: what, writer: w, ended: make(chan struct{}),
		tracker: &progress.Tracker{
			Message: what, AutoStopDisabled: true, Units: progress.Units{Formatter: formatBytes},
		},
	}
	w.AppendTracker(b.tracker)
	go func() {
		defer close(b.ended)
		w.Render()
	}()
	return b
}

func (b *bar) set(done, total int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return
	}
	if total != b.total {
		b.total = total
		b.tracker.UpdateTotal(total)
	}
	// A job that was begun anew counts from zero; Increment takes that too.
	b.tracker.Increment(done - b.tracker.Value())
}

func (b *bar) phase(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.stopped {
		b.tracker.UpdateMessage(b.what + ", " + name)
	}
}

func (b *bar) stop(whole bool) {
	b.mu.Lock()
	if !b.stopped {
		b.stopped = true
		b.tracker.UpdateMessage(b.what)
		if whole {
			b.tracker.Increment(max(b.total-b.tracker.Value(), 0))
			b.tracker.MarkAsDone()
		} else {
			b.tracker.MarkAsErrored()
		}
	}
	b.mu.Unlock()
	<-b.ended // the tracker was the last: the writer ends by itself
}

// lines tells the same as plain lines: at once when the phase changes, and
// else at intervals.
type lines struct {
	session *session
	what    string
	begin   time.Time

	mu          sync.Mutex // guards the rest and the order of lines
	name        string
	done, total int64
	last        time.Time
	stopped     bool
}

func (l *lines) set(done, total int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done, l.total = done, total
	if !l.stopped && time.Since(l.lastOrBegin()) >= lineInterval {
		l.print()
	}
}

func (l *lines) lastOrBegin() time.Time {
	if l.last.IsZero() {
		return l.begin
	}
	return l.last
}

func (l *lines) phase(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.stopped && name != l.name {
		l.name = name
		l.print()
	}
}

func (l *lines) stop(whole bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return
	}
	l.stopped = true
	l.name = "stopped"
	if whole {
		l.name = "done"
		l.done = max(l.done, l.total)
	}
	l.print()
}

// print writes where it is, how fast it went on average, and what is left at
// that rate.
func (l *lines) print() {
	l.last = time.Now()
	took := l.last.Sub(l.begin)
	text := l.what
	if l.name != "" {
		text += " " + l.name
	}
	if l.done > 0 || l.total > 0 {
		text += ": " + formatBytes(l.done)
		if l.total > 0 {
			text += fmt.Sprintf(" of %s (%.0f%%)", formatBytes(l.total), 100*float64(l.done)/float64(l.total))
		}
		if rate := float64(l.done) / took.Seconds(); l.done > 0 && took >= time.Second {
			text += fmt.Sprintf(", %s/s", formatBytes(int64(rate)))
			if left := float64(l.total - l.done); left > 0 {
				text += fmt.Sprintf(", %s left", time.Duration(left/rate*float64(time.Second)).Round(time.Second))
			}
		}
	}
	if took >= time.Second {
		text += fmt.Sprintf(" (%s)", took.Round(time.Second/10))
	}
	l.session.note("%s", text)
}
