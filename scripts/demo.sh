#!/usr/bin/env bash
# demo.sh BIN: take, roll back, clone and delete points of a real ext4 disk
# through the published API, and compare what comes back. Every call is printed
# as the curl (or cairn) line that makes it. Exits 0 only if all comparisons held.
#
# Where QEMU is installed it goes on with a machine (demo-machine.sh).
#
# As root the disk is mounted through a loop device; otherwise, or where loop
# devices do not work, debugfs reads and writes it.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(realpath "$1")
PATH=$PATH:/usr/sbin:/sbin
disk_mib=${CAIRN_DEMO_MIB:-1024}

work=$(mktemp -d -t cairn-demo.XXXXXX)
mnt=$work/mnt disk=$work/disk.raw truth=$work/truth data=$work/data
sock=$data/cairn.sock
server_pid=
compared=0
mkdir -p "$mnt" "$truth"

cleanup() {
	local code=$?
	trap - EXIT
	unmount || true
	end_machines
	if [ -n "$server_pid" ]; then
		kill "$server_pid" 2>/dev/null || true
		wait "$server_pid" 2>/dev/null || true
	fi
	if [ $code != 0 ]; then
		echo
		echo "DEMO FAILED (exit $code). The server's last lines:"
		tail -n 20 "$work/server.log" 2>/dev/null || true
	fi
	rm -rf --one-file-system "$work"
	exit $code
}
end_machines() { :; } # demo-machine.sh has the real one
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
	echo "   FAILED: $*" >&2
	exit 1
}
step() { printf '\n== %s\n' "$*"; }
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.2f s", b - a }'; }
human() { numfmt --to=iec-i --suffix=B --format=%.1f "$1"; }

# ---- the disk ---------------------------------------------------------------

loop_works=
mounted=

mount_disk() { # FILE [ro]
	mount -o "loop,${2:-rw}$([ "${2:-}" = ro ] && echo ,noload)" "$1" "$mnt"
	mounted=1
}

# A loop device lets go of its file a moment after the umount; the server
# refuses the file until then.
unmount() {
	local left=100
	[ -n "$mounted" ] || return 0
	umount "$mnt"
	mounted=
	while [ $left -gt 0 ] && losetup -n -O BACK-FILE -a | grep -qF "$work/"; do
		sleep 0.05
		left=$((left - 1))
	done
}

can_loop() {
	[ "$(id -u)" = 0 ] || return 1
	truncate -s 4M "$work/probe.raw"
	mkfs.ext4 -q -F "$work/probe.raw" || return 1
	mount_disk "$work/probe.raw" 2>/dev/null || return 1
	unmount
	rm "$work/probe.raw"
}

# Edits go to the truth folder at once and to the disk by commit_edits.
edits=()
put() { # SOURCE PATH: the file's parent folder is there already
	cp "$1" "$truth/$2"
	edits+=("put $2")
}
del() { # PATH
	rm "$truth/$1"
	edits+=("del $1")
}
commit_edits() {
	local edit path
	[ -z "$loop_works" ] || mount_disk "$disk"
	for edit in "${edits[@]}"; do
		path=${edit#* }
		if [ -n "$loop_works" ]; then
			case $edit in
			put*) cp "$truth/$path" "$mnt/$path" ;;
			del*) rm "$mnt/$path" ;;
			esac
			continue
		fi
		{
			echo "cd /$(dirname "$path")"
			echo "rm $(basename "$path")"
			[ "${edit%% *}" = del ] || echo "write $truth/$path $(basename "$path")"
		} >"$work/debugfs.cmd"
		debugfs -w -f "$work/debugfs.cmd" "$disk" >"$work/debugfs.log" 2>&1 || fail "debugfs: $(cat "$work/debugfs.log")"
	done
	unmount
	edits=()
}

make_disk() {
	local from
	from=$(go env GOROOT)/src
	[ "$(du -sm "$from" | cut -f1)" -lt $((disk_mib / 2)) ] || from=$from/net
	cp -r "$from" "$truth/src"
	mkdir "$truth/etc"
	find /etc -maxdepth 1 -type f -readable -size -64k -exec cp -t "$truth/etc" {} + 2>/dev/null || true
	head -c 20M /dev/urandom >"$truth/photo.bin"
	truncate -s "${disk_mib}M" "$disk"
	if can_loop; then
		loop_works=1
		mkfs.ext4 -q -F "$disk"
		mount_disk "$disk"
		cp -r "$truth/." "$mnt/"
		unmount
	else
		echo "   (no loop mounts here: debugfs stands in)"
		mkfs.ext4 -q -F -d "$truth" "$disk"
	fi
	echo "   ext4, $disk_mib MiB, $(find "$truth" -type f | wc -l) files, $(human "$(du -sB1 "$disk" | cut -f1)") used"
}

# remember DAY: keep the disk as it is now, bit by bit and file by file.
remember() {
	cp --sparse=always "$disk" "$work/$1.raw"
	(cd "$truth" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum) >"$work/$1.sums"
}

# compare DAY FILE WHAT: bytes first, then mount it and read every file.
compare() {
	local day=$1 file=$2 what=$3 root=$mnt start want got
	start=$(now)
	cmp "$work/$day.raw" "$file" || fail "$what differs from the disk of $day"
	if [ -n "$loop_works" ]; then
		mount_disk "$file" ro
	else
		root=$work/dump
		rm -rf "$root" && mkdir "$root"
		debugfs -R "rdump / $root" "$file" >"$work/debugfs.log" 2>&1 || fail "debugfs: $(cat "$work/debugfs.log")"
	fi
	(cd "$root" && sha256sum --quiet -c "$work/$day.sums") || fail "files of $what differ from $day"
	want=$(wc -l <"$work/$day.sums")
	got=$(find "$root" -name lost+found -prune -o -type f -print | wc -l)
	[ "$want" = "$got" ] || fail "$what has $got files, $day had $want"
	unmount
	compared=$((compared + 1))
	echo "   EQUAL: $what = the disk of $day: all $(human "$(stat -c %s "$file")"), and $got files read from its filesystem ($(since "$start"))"
}

# ---- the calls --------------------------------------------------------------

answer=$work/answer.json

# call METHOD PATH [BODY]: prints and makes the call; the answer is in $answer.
call() {
	local method=$1 path=$2 body=${3:-} args=() shown result code secs bytes
	args=(-X "$method" "$url$path")
	shown="curl"
	if [ "${4:-}" = unix ]; then
		args=(--unix-socket "$sock" "${args[@]}")
		shown+=" --unix-socket DIR/cairn.sock"
	fi
	[ "$method" = GET ] || shown+=" -X $method"
	shown+=" '$url$path'"
	if [ -n "$body" ]; then
		args+=(--data "$body")
		shown+=" --data '$body'"
	fi
	echo "\$ $shown"
	result=$(curl -sS --max-time 120 -o "$answer" -w '%{http_code} %{time_total} %{size_download}' "${args[@]}")
	read -r code secs bytes <<<"$result"
	echo "   $code in $secs s, $bytes bytes"
	case $code in 2??) ;; *) fail "$(cat "$answer")" ;; esac
}

# job: wait for the job of the last answer; it must succeed. $answer is then the job.
job() {
	local id status left=1200 start
	id=$(jq -r .job_id "$answer")
	start=$(now)
	while :; do
		curl -sS --max-time 30 -o "$answer" "$url/v2/zone/ac1/job/$id"
		status=$(jq -r .status "$answer")
		case $status in
		successful) break ;;
		failed) fail "job $id: $(jq -r .info "$answer")" ;;
		esac
		left=$((left - 1))
		[ $left -gt 0 ] || fail "job $id is still $status after two minutes"
		sleep 0.1
	done
	echo "   job $(jq -r .action "$answer") successful after $(since "$start"): $(jq -r '.resource_ids | join(" ")' "$answer") $(jq -r '.info // ""' "$answer")"
}

# cli ARGS: the same through the command line.
cli() {
	local start
	echo "\$ cairn $*"
	start=$(now)
	"$bin" --server "$url" "$@" | sed 's/^/   /'
	echo "   ($(since "$start"))"
}

# fetch PATH FILE: a stream to a sparse file.
fetch() {
	local start
	echo "\$ curl '$url$1' > $(basename "$2")"
	start=$(now)
	curl -sS --fail-with-body --max-time 600 "$url$1" | cp --sparse=always /dev/stdin "$2"
	echo "   $(human "$(stat -c %s "$2")") in $(since "$start")"
}

api=/v2/zone/ac1

# point NAME FULL: take one; sets $id.
point() {
	call POST $api/volume_snapshots "{\"resources\":[\"$vol\"],\"snapshot_name\":\"$1\",\"is_full\":$2}"
	job
	id=$(jq -r '.resource_ids[0]' "$answer")
	call GET "$api/volume_snapshots?snapshots=$id"
	jq -r '.snapshots[0] | "   \(.snapshot_id) \(.snapshot_type) status \(.status), parent \(.parent_id), head \(.is_head), size \(.size) MB"' "$answer"
	[ "$(jq -r '.snapshots[0].status' "$answer")" = available ] || fail "$id is not available"
}
# field ID JQ: one field of a point, asked without being printed.
field() { curl -sS --max-time 30 "$url$api/volume_snapshots?snapshots=$1" | jq -r ".snapshots[0].$2"; }
expect() { # WHAT GOT WANT
	[ "$2" = "$3" ] || fail "$1 is $2, expected $3"
	echo "   $1 is $2, as it must be"
}

start_server() {
	local port tries
	for tries in 1 2 3 4 5; do
		port=$((20000 + RANDOM))
		url=http://127.0.0.1:$port
		"$bin" serve --data-dir "$data" --listen "127.0.0.1:$port" >"$work/server.log" 2>&1 &
		server_pid=$!
		for _ in $(seq 100); do
			if curl -sf --max-time 2 --unix-socket "$sock" http://localhost/healthz >/dev/null 2>&1; then
				echo "   cairn serve --data-dir DIR --listen 127.0.0.1:$port"
				return
			fi
			kill -0 "$server_pid" 2>/dev/null || break
			sleep 0.1
		done
		kill "$server_pid" 2>/dev/null || true
		wait "$server_pid" 2>/dev/null || true
		server_pid=
	done
	fail "the server did not start after $tries tries"
}

# shellcheck source=scripts/demo-machine.sh
. scripts/demo-machine.sh

# ---- the story --------------------------------------------------------------

begin=$(now)
step "A real ext4 disk with real files"
make_disk

step "A server on a temporary folder"
start_server

step "The disk becomes a volume; naming a path is for the unix socket alone"
call POST $api/volumes/register "{\"path\":\"$disk\",\"volume_name\":\"demo disk\"}" unix
vol=$(jq -r .volume_id "$answer")
echo "   $vol"

step "Day 1: a full point"
remember day1
point "day 1" 1
day1=$id

step "Day 2: files change, then an incremental point"
put "$(go env GOROOT)/VERSION" etc/version
del photo.bin
head -c 5M /dev/urandom >"$work/new"
put "$work/new" report.bin
cp "$work/new" "$work/report.day2"
commit_edits
remember day2
point "day 2" 0
day2=$id
expect "the parent of day 2" "$(field "$day2" parent_id)" "$day1"

step "Day 3: and once more"
head -c 3M /dev/urandom >"$work/new"
put "$work/new" report.bin
commit_edits
remember day3
point "day 3" 0
day3=$id

step "What is there: list and tree"
call GET "$api/volume_snapshots?resource_id=$vol"
jq -r '.snapshots[] | "   \(.snapshot_id) \(.snapshot_name) \(.snapshot_type) parent \(.parent_id) head \(.is_head) \(.size) MB"' "$answer"
cli snapshot list
cli snapshot tree "$vol"

step "Roll back to day 2, in place"
call POST $api/volume_snapshots/apply "{\"snapshots\":[\"$day2\"]}"
job
compare day2 "$disk" "the disk after the rollback"
expect "is_head of day 2" "$(field "$day2" is_head)" 1
expect "is_head of day 3" "$(field "$day3" is_head)" 0

step "Day 4 grows from the point that was applied: the chain is a tree"
cp "$work/report.day2" "$truth/report.bin" # the rollback took day 3's edit back
head -c 2M /dev/urandom >"$work/new"
put "$work/new" day4.bin
commit_edits
remember day4
point "day 4" 0
day4=$id
expect "the parent of day 4" "$(field "$day4" parent_id)" "$day2"
cli snapshot tree "$vol"

step "Day 3 is still whole, beside the live branch"
fetch "$api/volume_snapshots/$day3/export?format=raw" "$work/export.raw"
compare day3 "$work/export.raw" "the export of day 3"

if command -v qemu-img >/dev/null; then
	fetch "$api/volume_snapshots/$day3/export?format=qcow2" "$work/export.qcow2"
	timeout 120 qemu-img check -q "$work/export.qcow2" || fail "qemu-img finds fault with the qcow2 export"
	timeout 120 qemu-img compare -q -F qcow2 "$work/day3.raw" "$work/export.qcow2" || fail "the qcow2 export differs from day 3"
	echo "   EQUAL: the export of day 3 as qcow2 = the disk of day3, says qemu-img"
	rm "$work/export.qcow2"
fi

step "A new volume from day 1"
call POST "$api/volume_snapshots/create_volume/$day1" '{"volume_name":"a clone of day 1"}'
job
clone=$(jq -r '.resource_ids[0]' "$answer")
fetch "$api/volumes/$clone/export?format=raw" "$work/clone.raw"
compare day1 "$work/clone.raw" "the new volume $clone"

step "Deleting day 2 takes its descendants; the dry run says so first"
call DELETE "$api/volume_snapshots/$day2?dry_run=1"
planned=$(jq -r '.snapshots | sort | join(" ")' "$answer")
echo "   would delete $planned and free $(human "$(jq -r .freed_bytes "$answer")")"
expect "what it would take" "$planned" "$(printf '%s\n' "$day2" "$day3" "$day4" | LC_ALL=C sort | xargs)"
call DELETE "$api/volume_snapshots/$day2"
job
call GET "$api/volume_snapshots?resource_id=$vol"
expect "what is left" "$(jq -r '[.snapshots[].snapshot_id] | join(" ")' "$answer")" "$day1"
expect "is_head of day 1" "$(field "$day1" is_head)" 1

step "Day 1 still comes back"
fetch "$api/volume_snapshots/$day1/export?format=raw" "$work/export.raw"
compare day1 "$work/export.raw" "the export of day 1"
compare day4 "$disk" "the live disk, which the delete must not touch,"

step "A deleted point comes back out of the recycle bin"
call POST $api/lease "{\"resources\":[\"$day3\"]}"
job
expect "what came back, its ancestor too" "$(jq -r '.resource_ids | sort | join(" ")' "$answer")" "$(printf '%s\n' "$day2" "$day3" | LC_ALL=C sort | xargs)"
fetch "$api/volume_snapshots/$day3/export?format=raw" "$work/export.raw"
compare day3 "$work/export.raw" "the export of day 3, back again,"

step "Deleted again, and this time its space is given back"
call DELETE "$api/volume_snapshots/$day2?dry_run=1"
planned=$(jq -r .freed_bytes "$answer")
call DELETE "$api/volume_snapshots/$day2"
job
before=$(du -sB1 "$data/repo" | cut -f1)
call POST "$api/repository/prune?empty_bin=1"
job
echo "   the dry run said $(human "$planned"); $(jq -r .info "$answer"); on disk $(human "$((before - $(du -sB1 "$data/repo" | cut -f1)))") less"
fetch "$api/volume_snapshots/$day1/export?format=raw" "$work/export.raw"
compare day1 "$work/export.raw" "the export of day 1 after the prune"

step "Scrub: every stored byte is read and checked"
call POST $api/repository/scrub
job
jq -r '.extra | fromjson | "   \(.points) points, \(.blobs) blobs, \(.chunks) chunks, \(.nodes) nodes, \(.bytes_read) bytes read"' "$answer"
expect "the number of damages found" "$(jq -r '.extra | fromjson | .damage | length' "$answer")" 0
cli scrub

machine_story

step "Done"
echo "   $compared comparisons, all equal; repository $(human "$(du -sB1 "$data" | cut -f1)") on disk (the clone included); $(since "$begin")"
[ "$compared" = 7 ]
