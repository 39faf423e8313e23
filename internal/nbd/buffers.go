package nbd

import (
	"math/bits"
	"sync"
)

const (
	smallestBuffer = 12 // log2: 4 KiB
	largestBuffer  = 25 // log2: 32 MiB
)

// buffer is memory of a bufferPool. Its length is the request's; what is in
// it before it was filled is another request's.
type buffer struct {
	b     []byte
	class int
}

// bufferPool keeps buffers of power-of-two sizes, for any number of goroutines.
type bufferPool struct {
	classes [largestBuffer - smallestBuffer + 1]sync.Pool
}

// get returns a buffer of n bytes, at most 32 MiB.
func (p *bufferPool) get(n int) *buffer {
	class := max(bits.Len(uint(max(n, 1)-1)), smallestBuffer) - smallestBuffer
	if b, ok := p.classes[class].Get().(*buffer); ok {
		b.b = b.b[:n]
		return b
	}
	return &buffer{b: make([]byte, n, 1<<(class+smallestBuffer)), class: class}
}

// put takes a buffer back; nil is none.
func (p *bufferPool) put(b *buffer) {
	if b != nil {
		p.classes[b.class].Put(b)
	}
}
