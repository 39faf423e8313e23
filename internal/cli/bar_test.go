package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// openTerminal gives both ends of a new pseudo-terminal.
func openTerminal(t *testing.T) (screen, program *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("skipped: no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { screen.Close() })
	if err := unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(screen.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 100}); err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return screen, program
}

// display reads what a terminal shows until the program closes it, and tells
// when it has shown a text.
type display struct {
	mu    sync.Mutex
	shown bytes.Buffer
	grown *sync.Cond
	ended bool
}

func watch(screen io.Reader) *display {
	d := &display{}
	d.grown = sync.NewCond(&d.mu)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := screen.Read(buf)
			d.mu.Lock()
			d.shown.Write(buf[:n])
			d.ended = err != nil // EIO once the other end is closed
			d.grown.Broadcast()
			d.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return d
}

// await waits until the text was shown; "" waits for the end.
func (d *display) await(t *testing.T, text string) string {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for !d.ended && (text == "" || !strings.Contains(d.shown.String(), text)) {
		d.grown.Wait()
	}
	if !strings.Contains(d.shown.String(), text) {
		t.Fatalf("%q was never shown:\n%s", text, d.shown.String())
	}
	return d.shown.String()
}

func TestBarOnTerminal(t *testing.T) {
	for _, whole := range []bool{true, false} {
		t.Run(fmt.Sprintf("whole %v", whole), func(t *testing.T) {
			screen, program := openTerminal(t)
			d := watch(screen)
			s := &session{app: &app{Config: Config{Err: program}}}
			m := s.newMeter("CreateSnapshots")
			if _, ok := m.(*bar); !ok {
				t.Fatalf("a terminal shows a %T", m)
			}
			m.phase("pending")
			d.await(t, "CreateSnapshots, pending") // total unknown
			m.set(1<<20, 4<<20)
			m.phase("working")
			d.await(t, " 25%")
			d.await(t, "1 MiB")
			d.await(t, "MiB/s") // the rate, once there is one
			d.await(t, "left")
			m.set(1<<19, 4<<20) // the job was begun anew
			d.await(t, "512 KiB")
			m.stop(whole)
			m.set(5<<20, 4<<20) // late news change nothing
			m.phase("late")
			m.stop(!whole)
			program.Close()
			shown := d.await(t, "")
			last := lastLine(shown)
			if want := map[bool]string{true: "CreateSnapshots done [4 MiB", false: "CreateSnapshots stopped [512 KiB"}[whole]; !strings.Contains(last, want) {
				t.Errorf("the last line is %q, want %q", last, want)
			}
			if testing.Verbose() {
				t.Logf("%q", shown)
			}
		})
	}
}

func lastLine(shown string) string {
	lines := strings.Split(strings.TrimRight(shown, "\r\n"), "\n")
	return lines[len(lines)-1]
}

func TestLinesElsewhere(t *testing.T) {
	var out bytes.Buffer
	s := &session{app: &app{Config: Config{Err: &out}}}
	m := s.newMeter("X")
	m.phase("pending")
	m.phase("pending")
	m.set(0, 4<<20)
	m.phase("working")
	m.set(1<<20, 4<<20)
	m.stop(true)
	m.stop(false)
	m.set(2<<20, 4<<20)
	m.phase("late")
	want := "X pending\nX working: 0 B of 4 MiB (0%)\nX done: 4 MiB of 4 MiB (100%)\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", &out, want)
	}
}
