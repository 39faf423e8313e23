package virtvolume

import (
	"context"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/errs"
)

// freeFloor bytes of the disk stay free: what QEMU cannot keep for a point it
// does not let the guest write.
const freeFloor = 1 << 30

func (b *backup) scratch(target string) string { return filepath.Join(b.dir, target+".scratch") }

// used is how many bytes its scratch takes.
func (b *backup) used() (n int64) {
	for _, s := range b.sources {
		var st unix.Stat_t
		if unix.Stat(b.scratch(s.at.target), &st) == nil {
			n += st.Blocks * 512
		}
	}
	return n
}

// watchEvery is how often the room that scratch takes is looked at.
const watchEvery = 200 * time.Millisecond

// watch gives the instant up before its scratch takes more than it may: a guest
// whose overwritten data QEMU cannot keep would not be let write.
func (in *instant) watch() {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-in.over.Done():
			return
		case <-tick.C:
		}
		if err := in.room(); err != nil {
			in.d.log.Warn("a snapshot is given up for what guests overwrite meanwhile", "machine", in.backups[0].dom.Name, "error", err)
			in.fail(err)
			for _, b := range in.backups {
				if err := in.d.abort(context.Background(), b.dom, b.dir); err != nil {
					in.d.log.Error("a backup whose scratch is full cannot be ended", "machine", b.dom.Name, "error", err)
				}
			}
			return
		}
	}
}

// room fails if scratch takes too much. Each instant may take all there is: two
// of them are ended later than one.
func (in *instant) room() error {
	var used int64
	for _, b := range in.backups {
		used += b.used()
	}
	if used > in.d.cfg.ScratchBytes {
		return errs.New(errs.Full, "domain %s: so much was overwritten during the snapshot that the scratch space of %d MiB is full, and the snapshot is given up; take it when less is written, or raise --scratch", in.backups[0].dom.Name, in.d.cfg.ScratchBytes>>20)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(in.d.cfg.Dir, &st); err == nil && used > 0 && int64(st.Bavail)*st.Bsize < freeFloor {
		return errs.New(errs.Full, "domain %s: the server's disk is nearly full, so what is overwritten during the snapshot cannot be kept, and the snapshot is given up; free some space and try again", in.backups[0].dom.Name)
	}
	return nil
}

// why is what the instant fails with; nil: with nothing that is known.
func (in *instant) why() error {
	if in.over.Err() != nil {
		return context.Cause(in.over)
	}
	return in.room()
}
