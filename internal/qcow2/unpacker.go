package qcow2

import (
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"cairn/internal/errs"
)

// maxWindow bounds what a zstd frame makes its reader remember. QEMU's frames
// need no more than a cluster; RFC 8878 wants 8 MiB understood.
const maxWindow = 8 << 20

// unpacker reads compressed clusters and remembers the last one, as a cluster
// is often read in pieces.
type unpacker struct {
	file io.ReaderAt
	zstd bool // else deflate

	at, n  int64 // where the remembered cluster lies in the file; n 0: nowhere
	out    []byte
	in     []byte
	source bytes.Reader // over in

	inflater io.ReadCloser // these two are made when needed
	decoder  *zstd.Decoder
}

// cluster unpacks size bytes from the n bytes at byte at of the file, which
// may have more after the stream. They are valid until the next call.
func (u *unpacker) cluster(at, n int64, size int) ([]byte, error) {
	if u.n > 0 && u.at == at && u.n == n {
		return u.out, nil
	}
	u.n = 0
	if int64(cap(u.in)) < n {
		u.in = make([]byte, n)
	}
	if u.out == nil {
		u.out = make([]byte, size)
	}
	if err := readFull(u.file, u.in[:n], at); err != nil {
		return nil, err
	}
	u.source.Reset(u.in[:n])
	stream, err := u.stream()
	if err != nil {
		return nil, err
	}
	// Only as much as a cluster has is asked for: neither what follows the
	// stream nor a stream that does not end gets any attention. QEMU reads so.
	if _, err := io.ReadFull(stream, u.out); err != nil {
		return nil, errs.Wrap(errs.Corrupt, err, "%s", damaged("the compressed cluster at byte %d does not unpack to %d bytes", at, size))
	}
	u.at, u.n = at, n
	return u.out, nil
}

// stream begins to unpack source.
func (u *unpacker) stream() (io.Reader, error) {
	if !u.zstd {
		if u.inflater == nil {
			u.inflater = flate.NewReader(&u.source)
			return u.inflater, nil
		}
		return u.inflater, u.inflater.(flate.Resetter).Reset(&u.source, nil)
	}
	if u.decoder == nil {
		var err error
		u.decoder, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("make a zstd decoder: %w", err)
		}
	}
	return u.decoder, u.decoder.Reset(&u.source)
}
