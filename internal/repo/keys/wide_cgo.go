//go:build cgo && amd64

package keys

// #include "wide_amd64.h"
import "C"

import (
	"unsafe"

	"cairn/internal/repo/addr"
)

// wideSupported reports whether the processor can run wideChunk.
func wideSupported() bool { return C.cairn_wide_supported() != 0 }

// wideChunk is the keyed BLAKE3 of a chunk of exactly addr.ChunkSize bytes.
func wideChunk(key *[32]byte, chunk []byte) (id addr.ID) {
	chunk = chunk[:C.CAIRN_WIDE_CHUNK]
	C.cairn_wide_chunk((*C.uint8_t)(unsafe.Pointer(&id[0])), (*C.uint8_t)(unsafe.Pointer(&chunk[0])), (*C.uint8_t)(unsafe.Pointer(&key[0])))
	return id
}
