//go:build !cgo

package codec

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// Name says which implementation this build has.
const Name = "go"

type goCodec struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

// New makes a codec.
func New() (Codec, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, fmt.Errorf("make a zstd encoder: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return nil, fmt.Errorf("make a zstd decoder: %w", err)
	}
	return &goCodec{enc: enc, dec: dec}, nil
}

func (c *goCodec) Encode(dst, src []byte) ([]byte, error) {
	return c.enc.EncodeAll(src, dst[:0]), nil
}

func (c *goCodec) Decode(dst, src []byte) error {
	if len(src) == 0 || len(dst) == 0 {
		return ErrCorrupt
	}
	// A capped slice keeps a lying frame from growing the result in place.
	out, err := c.dec.DecodeAll(src, dst[:0:len(dst)])
	if err != nil || len(out) != len(dst) || (len(out) > 0 && &out[0] != &dst[0]) {
		return ErrCorrupt
	}
	return nil
}

func (c *goCodec) Close() {
	c.enc.Close() //nolint:errcheck // it has no stream to flush
	c.dec.Close()
}
