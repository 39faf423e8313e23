package repo

import (
	"container/list"
	"sync"
)

// lru is a map that forgets what was used longest ago. Safe for concurrent use.
type lru[K comparable, V any] struct {
	mu    sync.Mutex // guards all below; a leaf of the lock order
	cap   int
	items map[K]*list.Element
	order *list.List // front: used last
}

type lruEntry[K comparable, V any] struct {
	key K
	val V
}

func newLRU[K comparable, V any](capacity int) *lru[K, V] {
	return &lru[K, V]{cap: capacity, items: make(map[K]*list.Element), order: list.New()}
}

func (l *lru[K, V]) get(k K) (v V, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.items[k]
	if !ok {
		return v, false
	}
	l.order.MoveToFront(e)
	return e.Value.(lruEntry[K, V]).val, true
}

func (l *lru[K, V]) put(k K, v V) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.items[k]; ok {
		e.Value = lruEntry[K, V]{k, v}
		l.order.MoveToFront(e)
		return
	}
	l.items[k] = l.order.PushFront(lruEntry[K, V]{k, v})
	if l.order.Len() > l.cap {
		last := l.order.Back()
		delete(l.items, last.Value.(lruEntry[K, V]).key)
		l.order.Remove(last)
	}
}

func (l *lru[K, V]) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.items)
	l.order.Init()
}
