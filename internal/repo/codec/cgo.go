//go:build cgo

package codec

import (
	"fmt"

	"github.com/DataDog/zstd"
)

// Name says which implementation this build has.
const Name = "libzstd"

const level = 1

type cgoCodec struct{ ctx zstd.Ctx }

// New makes a codec.
func New() (Codec, error) { return &cgoCodec{ctx: zstd.NewCtx()}, nil }

func (c *cgoCodec) Encode(dst, src []byte) ([]byte, error) {
	if n := zstd.CompressBound(len(src)); cap(dst) < n {
		dst = make([]byte, n)
	}
	out, err := c.ctx.CompressLevel(dst[:cap(dst)], src, level)
	if err != nil {
		return nil, fmt.Errorf("compress %d bytes: %w", len(src), err)
	}
	return out, nil
}

func (c *cgoCodec) Decode(dst, src []byte) error {
	if len(src) == 0 || len(dst) == 0 {
		return ErrCorrupt
	}
	n, err := c.ctx.DecompressInto(dst, src)
	if err != nil || n != len(dst) {
		return ErrCorrupt
	}
	return nil
}

func (c *cgoCodec) Close() {}
