// Package faulty wraps a blob store and makes its calls fail by plan, so that
// tests can ask "what if the n-th one fails?" for every n.
//
// Invariants:
//   - a call that the plan fails before never reaches the store below; one
//     that it fails after was done whole, and only its answer is lost: the
//     contract knows no third outcome;
//   - calls are numbered in the order in which they came, from 1; so with one
//     caller a history can be repeated call by call.
//
// A Store serves any number of goroutines; its Plan is called by one at a time.
package faulty

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"cairn/internal/blobstore"
)

// ErrInjected is the cause of every failure that a plan made without an error
// of its own.
var ErrInjected = errors.New("injected failure")

// Op is one of the store's methods.
type Op uint8

// The operations.
const (
	Put Op = iota
	ReadAt
	Stat
	List
	Delete
	numOps
)

func (o Op) String() string {
	return [...]string{"Put", "ReadAt", "Stat", "List", "Delete"}[o]
}

// Durable reports whether the operation changes what a power cut would leave.
func (o Op) Durable() bool { return o == Put || o == Delete }

// Call is one call that is about to happen.
type Call struct {
	Op       Op
	Name     string // the prefix for List
	N        int    // number of this call among all
	OpN      int    // number among those of its Op
	DurableN int    // number among Put and Delete; 0 for the others
}

// Outcome is what happens to a call.
type Outcome uint8

// The outcomes.
const (
	Pass       Outcome = iota
	FailBefore         // nothing was done, an error is returned
	FailAfter          // all was done, an error is returned all the same
)

// Plan decides on each call. err is wrapped into what the caller gets; nil
// means ErrInjected. With Pass it is ignored.
type Plan func(Call) (o Outcome, err error)

// Match picks calls.
type Match func(Call) bool

// Counts says how many calls came in, failed ones too.
type Counts struct {
	Calls   int
	Durable int // Put and Delete
	Op      [numOps]int
}

// Store is the wrapped store.
type Store struct {
	below blobstore.Store

	mu     sync.Mutex // guards what follows; a leaf of the lock order
	plan   Plan
	counts Counts
}

var _ blobstore.Store = (*Store)(nil)

// New wraps below. A nil plan passes everything and only counts.
func New(below blobstore.Store, plan Plan) *Store { return &Store{below: below, plan: plan} }

// SetPlan puts another plan in place and counts from zero again.
func (s *Store) SetPlan(plan Plan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plan, s.counts = plan, Counts{}
}

// Counts tells the calls since New or SetPlan.
func (s *Store) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}

// Any matches every call.
func Any(Call) bool { return true }

// Durable matches Put and Delete.
func Durable(c Call) bool { return c.Op.Durable() }

// Only matches calls of one kind.
func Only(op Op) Match { return func(c Call) bool { return c.Op == op } }

// Once fails the n-th matching call, counted from 1, and no other.
func Once(n int, m Match, o Outcome) Plan {
	seen := 0
	return func(c Call) (Outcome, error) {
		if !m(c) {
			return Pass, nil
		}
		if seen++; seen == n {
			return o, nil
		}
		return Pass, nil
	}
}

// From fails the n-th matching call and every matching one after it, as a
// disk that died or filled up would. Only the n-th has the outcome o, later
// ones do nothing.
func From(n int, m Match, o Outcome) Plan {
	seen := 0
	return func(c Call) (Outcome, error) {
		if !m(c) {
			return Pass, nil
		}
		switch seen++; {
		case seen < n:
			return Pass, nil
		case seen == n:
			return o, nil
		}
		return FailBefore, nil
	}
}

// Crash kills the machine at the n-th durable operation: it is done whole or
// not at all, and every later call of any kind fails. The store below then is
// what the next start finds.
func Crash(n int, whole bool) Plan {
	dead := false
	return func(c Call) (Outcome, error) {
		switch {
		case dead:
			return FailBefore, nil
		case c.DurableN != n:
			return Pass, nil
		}
		dead = true
		if whole {
			return FailAfter, nil
		}
		return FailBefore, nil
	}
}

// With makes a plan fail with err instead of ErrInjected.
func With(p Plan, err error) Plan {
	return func(c Call) (Outcome, error) {
		o, _ := p(c)
		return o, err
	}
}

// do counts a call, asks the plan and runs f, or not.
func (s *Store) do(op Op, name string, f func() error) error {
	s.mu.Lock()
	s.counts.Calls++
	s.counts.Op[op]++
	c := Call{Op: op, Name: name, N: s.counts.Calls, OpN: s.counts.Op[op]}
	if op.Durable() {
		s.counts.Durable++
		c.DurableN = s.counts.Durable
	}
	var o Outcome
	var cause error
	if s.plan != nil {
		o, cause = s.plan(c)
	}
	s.mu.Unlock()
	if cause == nil {
		cause = ErrInjected
	}
	switch o {
	case FailBefore:
		return fmt.Errorf("%s %s, call %d, not done: %w", op, name, c.N, cause)
	case FailAfter:
		if err := f(); err != nil {
			return err
		}
		return fmt.Errorf("%s %s, call %d, done: %w", op, name, c.N, cause)
	}
	return f()
}

// Put implements blobstore.Store.
func (s *Store) Put(ctx context.Context, name string, parts ...[]byte) error {
	return s.do(Put, name, func() error { return s.below.Put(ctx, name, parts...) })
}

// ReadAt implements blobstore.Store.
func (s *Store) ReadAt(ctx context.Context, name string, buf []byte, off int64) (n int, err error) {
	err = s.do(ReadAt, name, func() error {
		n, err = s.below.ReadAt(ctx, name, buf, off)
		return err
	})
	return n, err
}

// Stat implements blobstore.Store.
func (s *Store) Stat(ctx context.Context, name string) (info blobstore.Info, err error) {
	err = s.do(Stat, name, func() error {
		info, err = s.below.Stat(ctx, name)
		return err
	})
	return info, err
}

// List implements blobstore.Store. Failing it after means that fn saw all.
func (s *Store) List(ctx context.Context, prefix string, fn func(blobstore.Info) error) error {
	return s.do(List, prefix, func() error { return s.below.List(ctx, prefix, fn) })
}

// Delete implements blobstore.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	return s.do(Delete, name, func() error { return s.below.Delete(ctx, name) })
}
