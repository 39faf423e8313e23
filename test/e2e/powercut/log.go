package powercut

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// The log is QEMU's blklogwrites driver's, in the format of the Linux kernel's
// dm-log-writes target (Documentation/admin-guide/device-mapper/log-writes.rst,
// struct log_write_super and log_write_entry in drivers/md/dm-log-writes.c).
// All numbers are little-endian; sector counts are in units of the log's own
// sector size.
//
//	sector 0: magic u64 · version u64 · number of entries u64 · sector size u32
//	then entries: sector u64 · sectors u64 · flags u64 · length of a mark u64,
//	in a sector of its own, followed by the sectors that were written
const (
	logMagic   = 0x6a736677736872
	logVersion = 1
	sector     = 512 // what the rig asks QEMU for

	flagFlush   = 1 << 0
	flagFUA     = 1 << 1
	flagDiscard = 1 << 2
)

// entry is one request that reached the disk.
type entry struct {
	flush  bool
	off    int64 // on the disk, in bytes
	length int64
	data   int64 // where the written bytes begin in the log
	end    int64 // of the entry in the log
}

// readLog finds all entries of a finished log and checks that it is whole.
func readLog(f *os.File) ([]entry, error) {
	var super [sector]byte
	if _, err := f.ReadAt(super[:], 0); err != nil {
		return nil, fmt.Errorf("read the log's first sector: %w", err)
	}
	le := binary.LittleEndian
	if magic, version := le.Uint64(super[0:]), le.Uint64(super[8:]); magic != logMagic || version != logVersion {
		return nil, fmt.Errorf("log of magic %#x and version %d, want %#x and %d", magic, version, logMagic, logVersion)
	}
	if size := le.Uint32(super[24:]); size != sector {
		return nil, fmt.Errorf("log of sectors of %d bytes, want %d", size, sector)
	}
	var entries []entry
	flushed := 0 // entries up to the last flush: what the first sector counts
	for at := int64(sector); ; {
		var head [32]byte
		_, err := f.ReadAt(head[:], at)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read entry %d of the log: %w", len(entries), err)
		}
		e := entry{off: int64(le.Uint64(head[0:])) * sector, length: int64(le.Uint64(head[8:])) * sector, data: at + sector}
		switch flags := le.Uint64(head[16:]); flags {
		case 0:
		case flagFlush:
			e.flush = true
		default:
			// Neither a loop device nor nbdfuse sends any of these.
			return nil, fmt.Errorf("entry %d has flags %#x (FUA %d, discard %d); only writes and flushes are understood",
				len(entries), flags, flagFUA, flagDiscard)
		}
		e.end = e.data + e.length
		entries = append(entries, e)
		at = e.end
		if e.flush {
			flushed = len(entries)
		}
	}
	if n := le.Uint64(super[16:]); n != uint64(flushed) {
		return nil, fmt.Errorf("the log counts %d entries at its last flush, found %d", n, flushed)
	}
	return entries, nil
}
