# stack.sh DIR BYTES LOOP: a mounted ext4 at DIR/mnt, all of whose writes and
# flushes are logged in DIR/log, in the order in which its disk got them:
#
#	ext4 – LOOP without a page cache – file of nbdfuse – qemu-nbd –
#	blklogwrites – DIR/disk, DIR/log
#
# Says "ready"; takes that disk down at a line on its stdin and says "down";
# cleans up whatever is left at the end of its stdin, however that came about.
set -u
dir=$1 bytes=$2 loop=$3
nbd='' fuse=''

unmount() { # PATH
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		mountpoint -q "$1" || return 0
		umount "$1" 2>/dev/null && continue
		sleep 0.2
	done
	echo "$1 is busy; it is detached" >&2
	umount -l "$1"
	return 1
}

ended() { # PID: wait 10 s for it, then kill it
	for _ in $(seq 100); do
		kill -0 "$1" 2>/dev/null || { wait "$1"; return 0; }
		sleep 0.1
	done
	echo "process $1 does not end; it is killed" >&2
	kill -9 "$1"
	return 1
}

down() {
	ok=0
	unmount "$dir/mnt" || ok=1
	! losetup "$loop" >/dev/null 2>&1 || losetup -d "$loop" || ok=1
	unmount "$dir/fuse" || ok=1
	[ -z "$fuse" ] || ended "$fuse" || ok=1
	fuse=''
	[ -z "$nbd" ] || { kill "$nbd" 2>/dev/null; ended "$nbd"; } || ok=1
	nbd=''
	return $ok
}

fail() {
	echo "$1" >&2
	cat "$dir/tools.log" >&2
	down
	exit 1
}

# within N COMMAND…: succeed as soon as it does, at most after N times 50 ms
within() {
	n=$1
	shift
	for _ in $(seq "$n"); do
		"$@" 2>/dev/null && return 0
		sleep 0.05
	done
	return 1
}

trap '' INT TERM HUP # the end of stdin ends this, and nothing else
mkdir -p "$dir/mnt"
truncate -s "$bytes" "$dir/disk"
: >"$dir/log"
: >"$dir/fuse"

qemu-nbd -t -k "$dir/nbd" --image-opts "driver=blklogwrites,file.driver=file,file.filename=$dir/disk,log.driver=file,log.filename=$dir/log,log-sector-size=512,log-super-update-interval=1" \
	>"$dir/tools.log" 2>&1 </dev/null &
nbd=$!
within 200 test -S "$dir/nbd" || fail "qemu-nbd does not start"
nbdfuse -C 1 "$dir/fuse" --unix "$dir/nbd" >>"$dir/tools.log" 2>&1 </dev/null &
fuse=$!
within 200 mountpoint -q "$dir/fuse" || fail "nbdfuse does not start"
losetup --direct-io=on "$loop" "$dir/fuse" || fail "the loop device cannot be used"
[ "$(cat "/sys/block/${loop#/dev/}/loop/dio")" = 1 ] || fail "the loop device keeps a page cache, in which writes would hide"
mkfs.ext4 -q -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 -J size=8 "$loop" >>"$dir/tools.log" 2>&1 || fail "mkfs.ext4 fails"
mount "$loop" "$dir/mnt" || fail "the new ext4 cannot be mounted"
echo ready

if read -r _; then
	down && echo down
	cat >/dev/null
fi
down # a cut may be shown there, too
mountpoint -q "$dir/mnt" || mountpoint -q "$dir/fuse" || rm -rf --one-file-system "$dir"
