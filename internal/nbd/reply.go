package nbd

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"sort"

	"cairn/internal/extent"
)

const (
	maxErrorChunk  = 6 + maxStringLen + 8
	maxStatusChunk = 4 + 8<<18 // 262144 extents
)

// readReplies reads until the connection ends or the server breaks the
// protocol.
func (l *link) readReplies() error {
	var head [chunkLen]byte
	for {
		if _, err := io.ReadFull(l.r, head[:simpleReplyLen]); err != nil {
			return err
		}
		var err error
		switch binary.BigEndian.Uint32(head[:]) {
		case magicSimple:
			err = l.readSimple(head[:])
		case magicChunk:
			if _, err := io.ReadFull(l.r, head[simpleReplyLen:]); err != nil {
				return err
			}
			var ch chunk
			ch.parse(head[:])
			err = l.readChunk(&ch)
		default:
			err = violation("no reply: wrong magic")
		}
		if err != nil {
			return err
		}
	}
}

func (l *link) readSimple(head []byte) error {
	code := Errno(binary.BigEndian.Uint32(head[4:]))
	c, err := l.find(binary.BigEndian.Uint64(head[8:]))
	if err != nil {
		return err
	}
	switch {
	case c.chunks > 0:
		return violation("a simple reply after chunks")
	case code != 0:
		l.finish(c, code)
		return nil
	case c.cmd == cmdBlockStatus, c.cmd == cmdRead && l.info.structured:
		return violation("a simple reply to %s", commandName(c.cmd))
	case c.cmd == cmdRead:
		if err := l.fill(c, int64(c.off), int64(c.length)); err != nil {
			return err
		}
	}
	l.finish(c, nil)
	return nil
}

func (l *link) readChunk(ch *chunk) error {
	if !l.info.structured {
		return violation("a chunk that was not negotiated")
	}
	c, err := l.find(ch.cookie)
	if err != nil {
		return err
	}
	c.chunks++
	if c.chunks > 64+int(c.length)/512 {
		return violation("too many chunks")
	}
	last := ch.flags&chunkFlagDone != 0
	switch {
	case ch.kind&chunkIsError != 0:
		err = l.readError(c, ch)
	case ch.kind == chunkNone && ch.length == 0 && last:
	case ch.kind == chunkData && c.cmd == cmdRead && ch.length > 8 && ch.length-8 <= c.length:
		err = l.readData(c, int64(ch.length)-8)
	case ch.kind == chunkHole && c.cmd == cmdRead && ch.length == 12:
		err = l.readHole(c)
	case ch.kind == chunkBlockStatus && c.cmd == cmdBlockStatus:
		err = l.readStatus(c, ch.length)
	default:
		err = violation("a chunk of kind %d and %d bytes to %s", ch.kind, ch.length, commandName(c.cmd))
	}
	if err != nil || !last {
		return err
	}
	if c.failed == nil {
		if err := c.complete(); err != nil {
			return err
		}
	}
	l.finish(c, c.failed)
	return nil
}

// complete checks that a reply without errors has all that was asked for.
func (c *call) complete() error {
	switch {
	case c.cmd == cmdRead && extent.Total(c.covered) != int64(c.length):
		return violation("%d of the %d bytes of a read are missing", int64(c.length)-extent.Total(c.covered), c.length)
	case c.cmd == cmdBlockStatus && !slices.Contains(c.seen, c.context):
		return violation("no block status in the context asked for")
	}
	return nil
}

func (l *link) readError(c *call, ch *chunk) error {
	if ch.length < 6 || ch.length > maxErrorChunk {
		return violation("an error of %d bytes", ch.length)
	}
	body := make([]byte, ch.length)
	if _, err := io.ReadFull(l.r, body); err != nil {
		return err
	}
	code, n := Errno(binary.BigEndian.Uint32(body)), int(binary.BigEndian.Uint16(body[4:]))
	rest := len(body) - 6 - n
	if code == 0 || rest < 0 || (ch.kind == chunkError && rest != 0) || (ch.kind == chunkErrorOffset && rest != 8) {
		return violation("a malformed error")
	}
	if c.failed == nil {
		c.failed = code
		if n > 0 {
			c.failed = fmt.Errorf("%w; the server says %q", code, body[6:6+min(n, 512)])
		}
	}
	return nil
}

func (l *link) readData(c *call, n int64) error {
	var b [8]byte
	if _, err := io.ReadFull(l.r, b[:]); err != nil {
		return err
	}
	off, err := c.cover(binary.BigEndian.Uint64(b[:]), n)
	if err != nil {
		return err
	}
	return l.fill(c, off, n)
}

func (l *link) readHole(c *call) error {
	var b [12]byte
	if _, err := io.ReadFull(l.r, b[:]); err != nil {
		return err
	}
	n := int64(binary.BigEndian.Uint32(b[8:]))
	off, err := c.cover(binary.BigEndian.Uint64(b[:]), n)
	if err != nil {
		return err
	}
	if l.begin(c) {
		at := off - int64(c.off)
		clear(c.into[at : at+n])
		l.end(c)
	}
	return nil
}

// cover notes that the n bytes at off came, which must be asked for and new.
func (c *call) cover(wire uint64, n int64) (off int64, err error) {
	end := int64(c.off) + int64(c.length)
	if n <= 0 || wire < c.off || wire >= uint64(end) || n > end-int64(wire) {
		return 0, violation("%d bytes at %d in the reply to %d at %d", n, wire, c.length, c.off)
	}
	off = int64(wire)
	i := sort.Search(len(c.covered), func(i int) bool { return c.covered[i].End() > off })
	if i < len(c.covered) && c.covered[i].Off < off+n {
		return 0, violation("the bytes at %d came twice", off)
	}
	before := i > 0 && c.covered[i-1].End() == off
	after := i < len(c.covered) && c.covered[i].Off == off+n
	switch {
	case before && after:
		c.covered[i-1].Len += n + c.covered[i].Len
		c.covered = slices.Delete(c.covered, i, i+1)
	case before:
		c.covered[i-1].Len += n
	case after:
		c.covered[i].Off, c.covered[i].Len = off, c.covered[i].Len+n
	default:
		c.covered = slices.Insert(c.covered, i, extent.Range{Off: off, Len: n})
	}
	return off, nil
}

// fill reads n bytes for the export's offset off, into the caller's buffer if
// the caller still waits.
func (l *link) fill(c *call, off, n int64) error {
	if !l.begin(c) {
		_, err := l.r.Discard(int(n))
		return err
	}
	defer l.end(c)
	at := off - int64(c.off)
	_, err := io.ReadFull(l.r, c.into[at:at+n])
	return err
}

func (l *link) readStatus(c *call, length uint32) error {
	if length < 12 || (length-4)%8 != 0 || length > maxStatusChunk {
		return violation("block status of %d bytes", length)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(l.r, body); err != nil {
		return err
	}
	id := binary.BigEndian.Uint32(body)
	if slices.Contains(c.seen, id) {
		return violation("block status in one context twice")
	}
	known := false
	for _, granted := range l.info.contexts {
		known = known || granted == id
	}
	if !known {
		return violation("block status in a context that was not granted")
	}
	c.seen = append(c.seen, id)
	off, end := int64(c.off), int64(c.off)+int64(c.length)
	for body = body[4:]; len(body) > 0; body = body[8:] {
		n := int64(binary.BigEndian.Uint32(body))
		if n == 0 || off >= end {
			return violation("block status with an empty extent, or one beyond what was asked for")
		}
		if id == c.context {
			e := Extent{Off: off, Len: min(n, end-off), Flags: binary.BigEndian.Uint32(body[4:])}
			c.extents = append(c.extents, e)
		}
		off += n
	}
	return nil
}
