package qmp

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"cairn/internal/errs"
)

// Agent is a connection to the agent inside a guest. It is for one goroutine.
type Agent struct {
	nc  net.Conn
	r   *reader
	err error // of a command that left the two of us out of step
}

// DialAgent connects to the channel of a guest's agent and waits until the agent
// answers on it. errs.Unavailable: no agent answered before ctx ended; whether
// the guest has none, hangs or still boots cannot be told from outside.
func DialAgent(ctx context.Context, path string) (*Agent, error) {
	nc, err := dial(ctx, path)
	if err != nil {
		return nil, err
	}
	a := &Agent{nc: nc, r: newReader(nc)}
	if err := a.sync(ctx); err != nil {
		return nil, errors.Join(errs.Wrap(errs.Unavailable, err, "no guest agent answers at %s", path), nc.Close())
	}
	return a, nil
}

// sync skips what is left of earlier conversations: the agent puts a byte that
// no JSON has before its answer, and what we send begins with one, which ends
// whatever half a command somebody else left there.
func (a *Agent) sync(ctx context.Context) error {
	var b [8]byte
	rand.Read(b[:]) // never fails
	id := binary.LittleEndian.Uint64(b[:]) >> 16
	line, err := json.Marshal(request{Execute: "guest-sync-delimited", Arguments: map[string]any{"id": id}})
	if err != nil {
		return err
	}
	defer a.watch(ctx)()
	if _, err := a.nc.Write(append(append([]byte{0xff}, line...), '\n')); err != nil {
		return cause(ctx, err)
	}
	for {
		line, err := a.r.line()
		if err != nil {
			return cause(ctx, err)
		}
		at := bytes.LastIndexByte(line, 0xff)
		if at < 0 {
			continue
		}
		var m message
		var got uint64
		if json.Unmarshal(line[at+1:], &m) == nil && json.Unmarshal(m.Return, &got) == nil && got == id {
			return nil
		}
	}
}

// watch hangs up when ctx ends.
func (a *Agent) watch(ctx context.Context) (stop func()) {
	end := context.AfterFunc(ctx, func() { a.nc.Close() })
	return func() { end() }
}

func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Do runs a command of the agent and decodes its result into result, unless
// that is nil. The agent's refusal is an *Error. If ctx ends first, the command
// may still be done, and the connection is of no more use.
func (a *Agent) Do(ctx context.Context, command string, args, result any) error {
	if a.err != nil {
		return fmt.Errorf("%s: %w", command, a.err)
	}
	line, err := json.Marshal(request{Execute: command, Arguments: args})
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	defer a.watch(ctx)()
	m, err := a.ask(append(line, '\n'))
	if err != nil {
		a.err = errs.Wrap(errs.Unavailable, cause(ctx, err), "the guest agent did not answer %s", command)
		return a.err
	}
	return m.result(command, result)
}

func (a *Agent) ask(line []byte) (m message, err error) {
	if _, err := a.nc.Write(line); err != nil {
		return m, err
	}
	if m, err = a.r.message(); err != nil {
		return m, err
	}
	if m.Error == nil && m.Return == nil {
		return m, errors.New("neither a result nor an error")
	}
	return m, nil
}

// Close hangs up. The agent goes on.
func (a *Agent) Close() error {
	if err := a.nc.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
