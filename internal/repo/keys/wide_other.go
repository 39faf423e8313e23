//go:build !cgo || !amd64

package keys

import "cairn/internal/repo/addr"

func wideSupported() bool { return false }

// wideChunk is never called where wideSupported is false.
func wideChunk(*[32]byte, []byte) addr.ID { panic("this build has no wide hash") }
