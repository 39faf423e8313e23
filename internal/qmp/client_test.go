package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/internal/errs"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}`

// peer is the other end of one connection.
type peer struct {
	t  *testing.T
	nc net.Conn
	r  *bufio.Reader
}

// listen serves each connection with fn and gives the socket's path.
func listen(t *testing.T, fn func(p *peer)) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "qmp") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			fn(&peer{t, nc, bufio.NewReader(nc)})
			nc.Close()
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
		os.RemoveAll(dir)
	})
	return path
}

func (p *peer) say(lines ...string) {
	for _, l := range lines {
		if _, err := p.nc.Write([]byte(l + "\r\n")); err != nil {
			return // the test hung up, and says why if that was wrong
		}
	}
}

// asked is the next command; ok=false: the other end hung up.
func (p *peer) asked() (q struct {
	Execute   string
	Arguments json.RawMessage
	ID        json.RawMessage
}, ok bool) {
	line, err := p.r.ReadBytes('\n')
	if err != nil {
		return q, false
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(string(line), "\xff")), &q); err != nil {
		p.t.Errorf("the client sent %q: %v", line, err)
		return q, false
	}
	return q, true
}

// negotiate leads a new connection to where commands are taken.
func (p *peer) negotiate() {
	p.say(greeting)
	if q, ok := p.asked(); ok {
		if q.Execute != "qmp_capabilities" {
			p.t.Errorf("first command %q", q.Execute)
		}
		p.say(fmt.Sprintf(`{"return": {}, "id": %s}`, q.ID))
	}
}

func dialTest(t *testing.T, fn func(p *peer)) *Client {
	t.Helper()
	c, err := Dial(t.Context(), listen(t, func(p *peer) { p.negotiate(); fn(p) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Answers find who asked, in whatever order they come, with events between.
func TestAnswersByID(t *testing.T) {
	const n = 20
	c := dialTest(t, func(p *peer) {
		var answers []string
		for range n {
			q, ok := p.asked()
			if !ok {
				return
			}
			answers = append(answers, fmt.Sprintf(`{"id": %s, "return": {"echo": %s}}`, q.ID, q.Arguments))
		}
		for i := range answers {
			p.say(`{"event": "NICE", "data": {"n": 1}, "timestamp": {"seconds": 7, "microseconds": 5}}`, "", answers[len(answers)-1-i])
		}
		p.asked() // until it hangs up
	})
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			var got struct{ Echo struct{ I int } }
			if err := c.Do(t.Context(), "echo", map[string]int{"i": i}, &got); err != nil || got.Echo.I != i {
				t.Errorf("command %d: %+v, %v", i, got, err)
			}
		})
	}
	all.Wait()
	for range n {
		e, err := c.Await(t.Context(), func(e Event) bool { return e.Name == "NICE" })
		if err != nil || e.Time != time.Unix(7, 5000) || string(e.Data) != `{"n": 1}` {
			t.Fatalf("event %+v, %v", e, err)
		}
	}
}

func TestRefusal(t *testing.T) {
	c := dialTest(t, func(p *peer) {
		for q, ok := p.asked(); ok; q, ok = p.asked() {
			p.say(fmt.Sprintf(`{"id": %s, "error": {"class": "DeviceNotFound", "desc": "no disk7"}}`, q.ID))
		}
	})
	var e *Error
	if err := c.Do(t.Context(), "eject", nil, nil); !errors.As(err, &e) || *e != (Error{"eject", "DeviceNotFound", "no disk7"}) {
		t.Errorf("Do: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Do(t.Context(), "eject", nil, nil); !errs.Is(err, errs.Unavailable) {
		t.Errorf("Do after Close: %v", err)
	}
}

// What is no answer ends the connection, and whoever waits hears of it.
func TestHostilePeer(t *testing.T) {
	for name, line := range map[string]string{
		"no JSON":           `hello`,
		"another type":      `[1, 2]`,
		"answer to nothing": `{"return": {}}`,
		"cannot read us":    `{"error": {"class": "GenericError", "desc": "JSON parse error"}}`,
		"endless":           strings.Repeat(" ", maxLine+10),
		"binary":            "\xff\x00\x01",
	} {
		t.Run(name, func(t *testing.T) {
			c := dialTest(t, func(p *peer) {
				p.asked()
				p.say(line)
				p.asked()
			})
			if err := c.Do(t.Context(), "anything", nil, nil); !errs.Is(err, errs.Unavailable) {
				t.Errorf("Do: %v", err)
			}
			if _, err := c.Await(t.Context(), func(Event) bool { return true }); !errs.Is(err, errs.Unavailable) {
				t.Errorf("Await: %v", err)
			}
			<-c.done
		})
	}
	t.Run("answers twice, and to others", func(t *testing.T) {
		c := dialTest(t, func(p *peer) {
			for q, ok := p.asked(); ok; q, ok = p.asked() {
				a := fmt.Sprintf(`{"id": %s, "return": {}}`, q.ID)
				p.say(a, a, `{"id": 9999, "return": {}}`)
			}
		})
		for range 3 {
			if err := c.Do(t.Context(), "anything", nil, nil); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestEventsAreBounded(t *testing.T) {
	c := dialTest(t, func(p *peer) {
		for i := range maxEvents + 10 {
			p.say(fmt.Sprintf(`{"event": "E%d", "timestamp": {}}`, i))
		}
		q, _ := p.asked()
		p.say(fmt.Sprintf(`{"id": %s, "return": {}}`, q.ID))
		p.asked()
	})
	if err := c.Do(t.Context(), "behind the events", nil, nil); err != nil {
		t.Fatal(err)
	}
	if e, err := c.Await(t.Context(), func(Event) bool { return true }); err != nil || e.Name != "E10" {
		t.Errorf("the oldest event kept is %q, %v", e.Name, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := c.Await(ctx, func(e Event) bool { return e.Name == "never" }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Await of what never comes: %v", err)
	}
}

func TestDialFails(t *testing.T) {
	for name, fn := range map[string]func(p *peer){
		"hangs up":    func(*peer) {},
		"no greeting": func(p *peer) { p.say(`{"event": "RESUME", "timestamp": {}}`) },
		"refuses":     func(p *peer) { p.say(greeting, `{"error": {"class": "GenericError", "desc": "no"}}`); p.asked() },
		"silent":      func(p *peer) { p.asked() },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if c, err := Dial(ctx, listen(t, fn)); err == nil {
				c.Close()
				t.Error("Dial succeeded")
			}
		})
	}
	if _, err := Dial(t.Context(), filepath.Join(t.TempDir(), "none")); !errs.Is(err, errs.Unavailable) {
		t.Errorf("Dial where nobody listens: %v", err)
	}
}
