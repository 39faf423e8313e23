package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/internal/compute"
	"cairn/internal/errs"
)

// guestAgent answers as QEMU's agent does, one connection after the other, as
// QEMU serves its channel.
type guestAgent struct {
	mu      sync.Mutex
	frozen  bool
	refuses bool // to freeze
	silent  bool // hears a freeze, does it, and does not say so
	deaf    int  // so many times it does not do what a thaw asks
	asked   []string
}

func (a *guestAgent) answer(command string, args json.RawMessage) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if command != "guest-sync-delimited" {
		a.asked = append(a.asked, strings.TrimPrefix(command, "guest-fsfreeze-"))
	}
	switch command {
	case "guest-sync-delimited":
		var q struct{ ID json.RawMessage }
		_ = json.Unmarshal(args, &q) // an answer without an id is none
		return fmt.Sprintf("\xff{\"return\": %s}", q.ID)
	case "guest-fsfreeze-freeze":
		if a.refuses {
			return `{"error": {"class": "GenericError", "desc": "a filesystem is busy"}}`
		}
		a.frozen = true
		if a.silent {
			return ""
		}
		return `{"return": 2}`
	case "guest-fsfreeze-status":
		return fmt.Sprintf(`{"return": %q}`, map[bool]string{true: "frozen", false: "thawed"}[a.frozen])
	case "guest-fsfreeze-thaw":
		if a.deaf > 0 {
			a.deaf--
			return `{"error": {"class": "GenericError", "desc": "not now"}}`
		}
		a.frozen = false
		return `{"return": 2}`
	}
	return `{"error": {"class": "CommandNotFound", "desc": "?"}}`
}

func (a *guestAgent) serve(l net.Listener) {
	for {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		for lines := bufio.NewScanner(nc); lines.Scan(); {
			var q struct {
				Execute   string
				Arguments json.RawMessage
			}
			if json.Unmarshal(bytes.TrimPrefix(lines.Bytes(), []byte{0xff}), &q) != nil {
				continue
			}
			if _, err := fmt.Fprintln(nc, a.answer(q.Execute, q.Arguments)); err != nil {
				break
			}
		}
		nc.Close()
	}
}

func (a *guestAgent) isFrozen() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.frozen
}

func (a *guestAgent) want(t *testing.T, asked ...string) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.Equal(a.asked, asked) {
		t.Errorf("the agent was asked %v, want %v", a.asked, asked)
	}
}

// withAgent is a machine of which only the agent's channel is real.
func withAgent(t *testing.T, a *guestAgent) *Driver {
	t.Helper()
	needQEMU(t)
	r := newRig(t)
	d := r.open(t)
	s := compute.Spec{ID: "ins-A", CPUs: 1, Memory: 32 << 20, Disks: []compute.Disk{r.named("vol-A")}}
	if err := d.Define(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(r.dir, s.ID, agentSocket))
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { a.serve(l) })
	t.Cleanup(func() {
		if err := d.Close(); err != nil { // it waits for its watchdogs
			t.Error(err)
		}
		l.Close()
		serving.Wait()
	})
	return d
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(look) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came to pass: %s", what)
		}
	}
}

func TestFreeze(t *testing.T) {
	a := &guestAgent{}
	d := withAgent(t, a)
	f, err := d.Freeze(t.Context(), "ins-A", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if !a.isFrozen() {
		t.Error("the guest is not frozen")
	}
	for range 2 {
		if err := f.Thaw(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if a.isFrozen() {
		t.Error("the guest is frozen")
	}
	a.want(t, "freeze", "status", "thaw")
}

// Somebody else thaws the guest: whoever froze it is told.
func TestFreezeIsUndone(t *testing.T) {
	a := &guestAgent{}
	d := withAgent(t, a)
	f, err := d.Freeze(t.Context(), "ins-A", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	a.answer("guest-fsfreeze-thaw", nil)
	for range 2 {
		if err := f.Thaw(t.Context()); !errs.Is(err, errs.Unavailable) {
			t.Errorf("Thaw: %v", err)
		}
	}
}

// A guest whose Thaw does not come in time goes on all the same.
func TestFreezeForTooLong(t *testing.T) {
	a := &guestAgent{}
	d := withAgent(t, a)
	f, err := d.Freeze(t.Context(), "ins-A", 10*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the watchdog thaws it", func() bool { return !a.isFrozen() })
	if err := f.Thaw(t.Context()); !errs.Is(err, errs.Unavailable) {
		t.Errorf("Thaw: %v", err)
	}
}

// A guest that does not hear that it may go on is told until it does, and whoever
// thawed it is not kept waiting.
func TestThawIsInsistedOn(t *testing.T) {
	for name, limit := range map[string]time.Duration{"thaw": time.Hour, "watchdog": 10 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			a := &guestAgent{deaf: 3}
			d := withAgent(t, a)
			f, err := d.Freeze(t.Context(), "ins-A", limit)
			if err != nil {
				t.Fatal(err)
			}
			if name == "watchdog" {
				eventually(t, "the watchdog is at it", func() bool {
					a.mu.Lock()
					defer a.mu.Unlock()
					return slices.Contains(a.asked, "thaw")
				})
			}
			for range 2 {
				if err := f.Thaw(t.Context()); !errs.Is(err, errs.Unavailable) {
					t.Errorf("Thaw: %v", err)
				}
			}
			eventually(t, "it goes on", func() bool { return !a.isFrozen() })
		})
	}
}

// A freeze that is refused, or not answered in time, leaves nothing frozen.
func TestFreezeFails(t *testing.T) {
	for name, a := range map[string]*guestAgent{"refused": {refuses: true}, "not answered": {silent: true}} {
		t.Run(name, func(t *testing.T) {
			d := withAgent(t, a)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if _, err := d.Freeze(ctx, "ins-A", time.Hour); !errs.Is(err, errs.Unavailable) {
				t.Errorf("Freeze: %v", err)
			}
			eventually(t, "it is told to thaw", func() bool {
				a.mu.Lock()
				defer a.mu.Unlock()
				return !a.frozen && slices.Contains(a.asked, "thaw")
			})
		})
	}
	d := withAgent(t, &guestAgent{})
	if err := os.Remove(filepath.Join(d.dir, "ins-A", agentSocket)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Freeze(t.Context(), "ins-A", time.Hour); !errs.Is(err, errs.Unavailable) {
		t.Errorf("Freeze without a channel: %v", err)
	}
}
