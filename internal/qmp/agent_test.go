package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"cairn/internal/errs"
)

// synced answers guest-sync-delimited, after rubbish.
func (p *peer) synced(rubbish ...string) bool {
	q, ok := p.asked()
	if !ok {
		return false
	}
	var args struct{ ID json.RawMessage }
	if err := json.Unmarshal(q.Arguments, &args); err != nil || q.Execute != "guest-sync-delimited" {
		p.t.Errorf("an agent's first command is %+v, %v", q, err)
	}
	p.say(rubbish...)
	p.say(fmt.Sprintf("\xff{\"return\": %s}", args.ID))
	return true
}

// What earlier conversations left on the channel is skipped.
func TestAgent(t *testing.T) {
	a, err := DialAgent(t.Context(), listen(t, func(p *peer) {
		if !p.synced(`{"return": {"old": true}}`, "", `{"ret`, "\xff{\"return\": 1}", `{"error": {"class": "GenericError", "desc": "parse"}}`) {
			return
		}
		p.asked()
		p.say(`{"return": {"frozen": 3}}`)
		p.asked()
		p.say(`{"error": {"class": "CommandNotFound", "desc": "disabled"}}`)
		p.asked()
		p.say(`{"something": 1}`)
		p.asked()
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var got struct{ Frozen int }
	if err := a.Do(t.Context(), "guest-fsfreeze-freeze", nil, &got); err != nil || got.Frozen != 3 {
		t.Errorf("Do: %+v, %v", got, err)
	}
	var e *Error
	if err := a.Do(t.Context(), "guest-exec", nil, nil); !errors.As(err, &e) || e.Class != "CommandNotFound" {
		t.Errorf("a refused command: %v", err)
	}
	for range 2 { // and it stays out of step
		if err := a.Do(t.Context(), "guest-ping", nil, nil); !errs.Is(err, errs.Unavailable) {
			t.Errorf("neither result nor error: %v", err)
		}
	}
}

// An agent that does not answer costs the time it was given, and is not taken
// for one that answers the next command.
func TestAgentIsSilent(t *testing.T) {
	short := func() (context.Context, context.CancelFunc) {
		return context.WithTimeout(t.Context(), 50*time.Millisecond)
	}
	ctx, cancel := short()
	defer cancel()
	if _, err := DialAgent(ctx, listen(t, func(p *peer) { p.asked(); p.asked() })); !errs.Is(err, errs.Unavailable) {
		t.Errorf("DialAgent: %v", err)
	}
	a, err := DialAgent(t.Context(), listen(t, func(p *peer) { p.synced(); p.asked(); p.asked() }))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	ctx, cancel = short()
	defer cancel()
	for range 2 {
		if err := a.Do(ctx, "guest-fsfreeze-freeze", nil, nil); !errs.Is(err, errs.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Do: %v", err)
		}
	}
}
