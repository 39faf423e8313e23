package nbd

import (
	"encoding/binary"
	"fmt"

	"cairn/internal/errs"
)

const (
	// pieceBytes is how much of a large read is in one chunk, so that the
	// first bytes leave before the last were read.
	pieceBytes = 1 << 20
	// A read from sparseRead on is looked up in BaseAllocation first, and
	// zeroes from smallestHole on are sent as holes.
	sparseRead   = 64 << 10
	smallestHole = 4096
	maxExtents   = 8192 // in one chunk of BLOCK_STATUS
	readExtents  = 128  // looked up for one read
)

// task is a request with what it needs.
type task struct {
	request
	hold
	refused error // it is answered with this and never done
	coming  bool  // a write's data is yet to be read
}

// moved is how many bytes of data a request carries, one way or the other: a
// trim of a gigabyte carries none.
func (t *task) moved() uint32 {
	if t.cmd == cmdRead || t.cmd == cmdWrite {
		return t.length
	}
	return 0
}

// commandFlags are the flags that each command may bear.
var commandFlags = [...]uint16{
	cmdRead:        cmdFlagFUA | cmdFlagDF,
	cmdWrite:       cmdFlagFUA,
	cmdDisconnect:  0xffff,
	cmdFlush:       cmdFlagFUA,
	cmdTrim:        cmdFlagFUA,
	cmdCache:       cmdFlagFUA,
	cmdWriteZeroes: cmdFlagFUA | cmdFlagNoHole | cmdFlagFastZero,
	cmdBlockStatus: cmdFlagFUA | cmdFlagReqOne,
}

// judge says why a request can not be done, by its header alone.
func (c *conn) judge(q *request) error {
	cfg := &c.export.cfg
	if int(q.cmd) >= len(commandFlags) {
		return refuse(EINVAL, "command %d is not known", q.cmd)
	}
	name := commandName(q.cmd)
	if wrong := q.flags &^ commandFlags[q.cmd]; wrong != 0 {
		return refuse(EINVAL, "%s has no flag %#x", name, wrong)
	}
	var offered bool
	switch q.cmd {
	case cmdFlush:
		return nil
	case cmdRead:
		offered = q.flags&cmdFlagDF == 0 || c.structured
	case cmdWrite:
		offered = true
	case cmdTrim:
		offered = cfg.CanTrim || cfg.ReadOnly
	case cmdWriteZeroes:
		offered = (cfg.CanZero || cfg.ReadOnly) && (q.flags&cmdFlagFastZero == 0 || cfg.CanFastZero)
	case cmdCache:
		offered = cfg.CanCache
	case cmdBlockStatus:
		offered = len(c.contexts) > 0
	}
	if !offered {
		return refuse(EINVAL, "%s with flags %#x was not negotiated", name, q.flags)
	}
	if cfg.ReadOnly && (q.cmd == cmdWrite || q.cmd == cmdTrim || q.cmd == cmdWriteZeroes) {
		return refuse(EPERM, "the export is read-only")
	}
	return c.judgeRange(q, name)
}

func (c *conn) judgeRange(q *request, name string) error {
	bs := c.export.cfg.BlockSize
	length := int64(q.length)
	switch {
	case (q.cmd == cmdRead || q.cmd == cmdWrite) && length > bs.Max:
		return refuse(EINVAL, "%s of %d bytes is more than the maximum of %d", name, length, bs.Max)
	case q.off > uint64(c.size) || length > c.size-int64(q.off):
		code := EINVAL
		if q.cmd == cmdWrite || q.cmd == cmdWriteZeroes {
			code = ENOSPC
		}
		return refuse(code, "%s of %d bytes at %d is beyond the end at %d", name, length, q.off, c.size)
	case (int64(q.off)|length)%bs.Min != 0:
		return refuse(EINVAL, "%s of %d bytes at %d is not aligned to %d", name, length, q.off, bs.Min)
	case length == 0 && q.cmd == cmdBlockStatus:
		return refuse(EINVAL, "%s of no bytes", name)
	}
	return nil
}

func refuse(code Errno, format string, args ...any) error {
	return errs.Wrap(code.kind(), code, format, args...)
}

// do carries a request out and puts its reply.
func (c *conn) do(t *task) {
	err := t.refused
	if err == nil {
		err = ESHUTDOWN
		if c.enter() {
			err = c.carryOut(t)
			c.leave()
		}
	}
	if err != nil {
		c.replyError(t, err)
	} else if t.cmd != cmdRead && t.cmd != cmdBlockStatus {
		c.replySimple(t, 0)
	}
	c.give(t.hold)
}

// carryOut calls the Backend. Reads and block status reply by themselves, as
// long as they have no error.
func (c *conn) carryOut(t *task) error {
	b, off, length := c.export.backend, int64(t.off), int64(t.length)
	flags := Flags(t.flags) & (FUA | NoHole | FastZero)
	switch {
	case t.cmd == cmdFlush:
		return b.Flush(c.doing)
	case t.cmd == cmdRead && c.structured:
		return c.readChunks(t)
	case t.cmd == cmdRead:
		return c.readSimple(t)
	case length == 0:
		return nil
	case t.cmd == cmdWrite:
		return b.WriteAt(c.doing, t.buf.b, off, flags)
	case t.cmd == cmdTrim:
		return b.Trim(c.doing, off, length, flags)
	case t.cmd == cmdWriteZeroes:
		return b.Zero(c.doing, off, length, flags)
	case t.cmd == cmdCache:
		return b.Cache(c.doing, off, length)
	}
	return c.blockStatus(t)
}

func (c *conn) replySimple(t *task, code Errno) {
	var head [simpleReplyLen]byte
	putSimple(head[:], code, t.cookie)
	c.w.put(head[:], nil, hold{})
}

func (c *conn) replyError(t *task, err error) {
	code := errnoOf(err)
	if t.refused == nil && c.doing.Err() == nil {
		c.server.log.Warn("an NBD request failed", "export", c.export.cfg.Name, "command", commandName(t.cmd),
			"offset", t.off, "length", t.length, "err", err)
	}
	if !c.structured {
		c.replySimple(t, code)
		return
	}
	text := remark(err)
	payload := binary.BigEndian.AppendUint32(nil, uint32(code))
	payload = binary.BigEndian.AppendUint16(payload, uint16(len(text)))
	payload = append(payload, text...)
	c.putChunk(t, chunkFlagDone, chunkError, payload, hold{})
}

func (c *conn) putChunk(t *task, flags, kind uint16, payload []byte, h hold) {
	var head [chunkLen]byte
	(&chunk{flags: flags, kind: kind, cookie: t.cookie, length: uint32(len(payload))}).put(head[:])
	c.w.put(head[:], payload, h)
}

// readSimple reads all before it replies, as a simple reply says at its start
// whether the read worked.
func (c *conn) readSimple(t *task) error {
	buf := c.server.pool.get(int(t.length))
	if t.length > 0 {
		if err := c.export.backend.ReadAt(c.doing, buf.b, int64(t.off)); err != nil {
			c.server.pool.put(buf)
			return err
		}
	}
	var head [simpleReplyLen]byte
	putSimple(head[:], 0, t.cookie)
	c.w.put(head[:], buf.b, hold{buf, t.cost})
	t.cost = 0
	return nil
}

// readChunks replies with data and holes.
func (c *conn) readChunks(t *task) error {
	if t.length == 0 {
		c.putChunk(t, chunkFlagDone, chunkNone, nil, hold{})
		return nil
	}
	whole := t.flags&cmdFlagDF != 0
	piece := int64(pieceBytes)
	if whole {
		piece = defaultMaxBlock
	}
	var holes []Extent
	if !whole && t.length >= sparseRead {
		holes = c.holes(t)
	}
	end := int64(t.off) + int64(t.length)
	for off := int64(t.off); off < end; {
		for len(holes) > 0 && holes[0].End() <= off {
			holes = holes[1:]
		}
		next := min(off+piece, end)
		if len(holes) > 0 && holes[0].Off <= off {
			next = holes[0].End()
			c.putHole(t, off, next-off, next == end)
		} else {
			if len(holes) > 0 {
				next = min(next, holes[0].Off)
			}
			if err := c.readPiece(t, off, next-off, next == end); err != nil {
				return err
			}
		}
		off = next
	}
	return nil
}

// holes are the zeroes that are worth a chunk of their own, cut at the
// request's bounds. Not knowing them costs nothing but bytes.
func (c *conn) holes(t *task) []Extent {
	if !c.export.hasContext(BaseAllocation) {
		return nil
	}
	off, end := int64(t.off), int64(t.off)+int64(t.length)
	var room [readExtents]Extent
	found, err := c.export.backend.Status(c.doing, room[:0], BaseAllocation, off, end-off, readExtents)
	if err != nil || checkExtents(found, off, 1) != nil {
		return nil
	}
	var holes []Extent
	for _, e := range found {
		e.Len = min(e.End(), end) - e.Off
		if e.Flags&Zero != 0 && e.Len >= smallestHole {
			holes = append(holes, e)
		}
	}
	return holes
}

func doneIf(last bool) uint16 {
	if last {
		return chunkFlagDone
	}
	return 0
}

func (c *conn) putHole(t *task, off, length int64, last bool) {
	payload := make([]byte, 12)
	binary.BigEndian.PutUint64(payload, uint64(off))
	binary.BigEndian.PutUint32(payload[8:], uint32(length))
	h := hold{cost: t.cost}
	if last {
		t.cost = 0
	} else {
		h.cost = 0
	}
	c.putChunk(t, doneIf(last), chunkHole, payload, h)
}

func (c *conn) readPiece(t *task, off, length int64, last bool) error {
	buf := c.server.pool.get(int(length))
	if err := c.export.backend.ReadAt(c.doing, buf.b, off); err != nil {
		c.server.pool.put(buf)
		return err
	}
	var head [dataChunkLen]byte
	(&chunk{flags: doneIf(last), kind: chunkData, cookie: t.cookie, length: uint32(8 + length)}).put(head[:])
	binary.BigEndian.PutUint64(head[chunkLen:], uint64(off))
	h := hold{buf: buf}
	if last {
		h.cost, t.cost = t.cost, 0
	}
	c.w.put(head[:], buf.b, h)
	return nil
}

// blockStatus replies with one chunk for each context.
func (c *conn) blockStatus(t *task) error {
	limit := maxExtents
	if t.flags&cmdFlagReqOne != 0 {
		limit = 1
	}
	off, end := int64(t.off), int64(t.off)+int64(t.length)
	payloads := make([][]byte, len(c.contexts))
	for id, name := range c.contexts {
		found, err := c.export.backend.Status(c.doing, nil, name, off, end-off, limit)
		if err != nil {
			return err
		}
		if err := checkExtents(found, off, c.export.cfg.BlockSize.Min); err != nil {
			return fmt.Errorf("the backend's status in %s: %w", name, err)
		}
		payload := binary.BigEndian.AppendUint32(nil, uint32(id))
		for _, e := range found[:min(len(found), limit)] {
			if e.Off >= end {
				break
			}
			payload = binary.BigEndian.AppendUint32(payload, uint32(min(e.End(), end)-e.Off))
			payload = binary.BigEndian.AppendUint32(payload, e.Flags)
		}
		payloads[id] = payload
	}
	for id, payload := range payloads {
		c.putChunk(t, doneIf(id == len(payloads)-1), chunkBlockStatus, payload, hold{})
	}
	return nil
}

// checkExtents refuses a Status answer that does not keep its contract.
func checkExtents(found []Extent, off, unit int64) error {
	if len(found) == 0 {
		return fmt.Errorf("no extent at %d", off)
	}
	for _, e := range found {
		if e.Off != off || e.Len <= 0 || e.Len%unit != 0 {
			return fmt.Errorf("an extent of %d bytes at %d where one at %d had to be", e.Len, e.Off, off)
		}
		off = e.End()
	}
	return nil
}
