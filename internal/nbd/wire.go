package nbd

import "encoding/binary"

// The numbers of the protocol document (doc/proto.md of the NBD project). All
// integers on the wire are big-endian.
const (
	magicHello       uint64 = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption      uint64 = 0x49484156454f5054 // "IHAVEOPT"
	magicOptionReply uint64 = 0x0003e889045565a9
	magicRequest     uint32 = 0x25609513
	magicSimple      uint32 = 0x67446698
	magicChunk       uint32 = 0x668e33ef
)

// Handshake flags: the server's, and the client's answer.
const (
	helloFixedNewstyle = 1 << 0
	helloNoZeroes      = 1 << 1
)

// Options of the haggling phase.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMetaContext = 9
	optSetMetaContext  = 10
)

// Replies to options. Errors have the highest bit set.
const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4

	repErrUnsup         = 1<<31 + 1
	repErrPolicy        = 1<<31 + 2
	repErrInvalid       = 1<<31 + 3
	repErrTLSReqd       = 1<<31 + 5
	repErrUnknown       = 1<<31 + 6
	repErrShutdown      = 1<<31 + 7
	repErrBlockSizeReqd = 1<<31 + 8
	repErrTooBig        = 1<<31 + 9
)

// Information types of INFO and GO.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Transmission flags.
const (
	flagHasFlags    = 1 << 0
	flagReadOnly    = 1 << 1
	flagFlush       = 1 << 2
	flagFUA         = 1 << 3
	flagTrim        = 1 << 5
	flagWriteZeroes = 1 << 6
	flagDF          = 1 << 7
	flagMultiConn   = 1 << 8
	flagCache       = 1 << 10
	flagFastZero    = 1 << 11
)

// Commands.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdCache       = 5
	cmdWriteZeroes = 6
	cmdBlockStatus = 7
)

// Command flags. The first, second and fifth are Flags of the public methods.
const (
	cmdFlagFUA      = 1 << 0
	cmdFlagNoHole   = 1 << 1
	cmdFlagDF       = 1 << 2
	cmdFlagReqOne   = 1 << 3
	cmdFlagFastZero = 1 << 4
)

// Chunks of a structured reply. Errors have the highest bit set.
const (
	chunkFlagDone = 1 << 0

	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkBlockStatus = 5
	chunkError       = 1<<15 + 1
	chunkErrorOffset = 1<<15 + 2
	chunkIsError     = 1 << 15
)

// Lengths of fixed parts, in bytes.
const (
	helloLen        = 18
	optionLen       = 16
	optionReplyLen  = 20
	exportReplyLen  = 10 // EXPORT_NAME's answer without its padding
	exportPadding   = 124
	requestLen      = 28
	simpleReplyLen  = 16
	chunkLen        = 20
	dataChunkLen    = chunkLen + 8
	maxStringLen    = 4096     // of any string, by the document
	defaultMaxBlock = 32 << 20 // what a peer may assume when no block sizes were told
)

var commandNames = [...]string{"READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "WRITE_ZEROES", "BLOCK_STATUS"}

func commandName(cmd uint16) string {
	if int(cmd) < len(commandNames) {
		return commandNames[cmd]
	}
	return "an unknown command"
}

// request is the header of one request.
type request struct {
	flags  uint16
	cmd    uint16
	cookie uint64 // the client's name for it; the reply bears it
	off    uint64
	length uint32
}

func (q *request) put(b []byte) {
	binary.BigEndian.PutUint32(b, magicRequest)
	binary.BigEndian.PutUint16(b[4:], q.flags)
	binary.BigEndian.PutUint16(b[6:], q.cmd)
	binary.BigEndian.PutUint64(b[8:], q.cookie)
	binary.BigEndian.PutUint64(b[16:], q.off)
	binary.BigEndian.PutUint32(b[24:], q.length)
}

// parse reads a header of requestLen bytes; false: these are not one.
func (q *request) parse(b []byte) bool {
	q.flags = binary.BigEndian.Uint16(b[4:])
	q.cmd = binary.BigEndian.Uint16(b[6:])
	q.cookie = binary.BigEndian.Uint64(b[8:])
	q.off = binary.BigEndian.Uint64(b[16:])
	q.length = binary.BigEndian.Uint32(b[24:])
	return binary.BigEndian.Uint32(b) == magicRequest
}

func putSimple(b []byte, code Errno, cookie uint64) {
	binary.BigEndian.PutUint32(b, magicSimple)
	binary.BigEndian.PutUint32(b[4:], uint32(code))
	binary.BigEndian.PutUint64(b[8:], cookie)
}

// chunk is the header of one piece of a structured reply.
type chunk struct {
	flags  uint16
	kind   uint16
	cookie uint64
	length uint32 // of what follows the header
}

func (c *chunk) put(b []byte) {
	binary.BigEndian.PutUint32(b, magicChunk)
	binary.BigEndian.PutUint16(b[4:], c.flags)
	binary.BigEndian.PutUint16(b[6:], c.kind)
	binary.BigEndian.PutUint64(b[8:], c.cookie)
	binary.BigEndian.PutUint32(b[16:], c.length)
}

// parse reads a header of chunkLen bytes whose magic was looked at.
func (c *chunk) parse(b []byte) {
	c.flags = binary.BigEndian.Uint16(b[4:])
	c.kind = binary.BigEndian.Uint16(b[6:])
	c.cookie = binary.BigEndian.Uint64(b[8:])
	c.length = binary.BigEndian.Uint32(b[16:])
}

// option makes an option as the client sends it.
func option(code uint32, data []byte) []byte {
	b := make([]byte, 0, optionLen+len(data))
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint32(b, code)
	b = appendString(b, string(data))
	return b
}

// optionReply makes the server's answer to an option.
func optionReply(opt, kind uint32, data []byte) []byte {
	b := make([]byte, 0, optionReplyLen+len(data))
	b = binary.BigEndian.AppendUint64(b, magicOptionReply)
	b = binary.BigEndian.AppendUint32(b, opt)
	b = binary.BigEndian.AppendUint32(b, kind)
	return appendString(b, string(data))
}

// appendString appends s with its length before it.
func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// cutString takes a string with its length before it off b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	if uint64(n) > uint64(len(b)) || n > maxStringLen {
		return "", nil, false
	}
	return string(b[:n]), b[n:], true
}
