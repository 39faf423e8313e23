# shellcheck shell=bash disable=SC2154
# demo-machine.sh: the part of the demo with a running machine. demo.sh sources
# it, and has the functions and the variables that are not made here.

# inside MACHINE COMMAND: what the command prints in the guest; the first one
# waits until that has booted.
inside() {
	"$guestctl" run "$data/volumes/machines/$1/console" "$2" || fail "in the guest of $1: $2"
}

tell() { # MACHINE COMMAND: shown
	echo "guest# $2"
	inside "$1" "$2" | sed 's/^/   /'
}

# end_machines: they would outlive the server.
machines=()
end_machines() {
	[ ${#machines[@]} = 0 ] || timeout 60 "$bin" --server "$url" instance delete -y --wait "${machines[@]}" >/dev/null 2>&1 || true
	machines=()
}

# run_machine IMAGE NAME: sets $machine.
run_machine() {
	call POST $api/instances "{\"instance\":{\"image_id\":\"$1\",\"instance_name\":\"$2\",\"cpu\":1,\"memory\":192}}"
	machine=$(jq -r '.resource_ids[0]' "$answer")
	machines+=("$machine")
	job
}

machine_story() {
	local image golden first began booted point
	guestctl=$work/guestctl
	step "A running machine"
	if ! command -v qemu-system-x86_64 >/dev/null || ! command -v busybox >/dev/null; then
		echo "   QEMU or busybox is not installed here, so this part is left out (apt install qemu-system-x86 busybox-static)"
		return
	fi
	go build -o "$guestctl" ./test/e2e/guest/guestctl
	if ! "$guestctl" disk "$work/guest.raw" 2>"$work/guest.log"; then
		echo "   no guest can be made here, so this part is left out: $(head -n 1 "$work/guest.log")"
		return
	fi
	echo "   a disk with a tiny Linux: $(human "$(stat -c %s "$work/guest.raw")")"
	cli image import "$work/guest.raw" --name tiny --wait
	image=$("$bin" --server "$url" image list -o json | jq -r '.images[0].image_id')

	step "A machine from that image: its disk is a clone, and there at once"
	run_machine "$image" web
	first=$machine
	began=$(now)
	inside "$first" true
	echo "   booted $(since "$began") after the job"
	tell "$first" "echo 'written on day 1' >/mnt/notes; sync; cat /mnt/notes; uname -sr"
	inside "$first" "for i in \$(seq 100); do pidof qemu-ga >/dev/null && break; sleep 0.2; done"

	step "A point of the machine while it runs; its agent brings the filesystems to rest for that moment"
	vol=$first
	point "machine, day 1" 0
	point=$id
	expect "the consistency" "$(field "$point" consistency)" filesystem
	expect "the resource type" "$(field "$point" resource.resource_type)" instance
	tell "$first" "echo 'a mistake on day 2' >/mnt/notes; sync; cat /mnt/notes"
	booted=$(inside "$first" "cat /proc/sys/kernel/random/boot_id")

	step "Rolled back: the machine is stopped, its disk is day 1's, and it runs again"
	call POST $api/volume_snapshots/apply "{\"snapshots\":[\"$point\"]}"
	job
	began=$(now)
	[ "$(inside "$first" "cat /proc/sys/kernel/random/boot_id")" != "$booted" ] || fail "the guest did not boot anew"
	echo "   booted $(since "$began") after the job"
	tell "$first" "cat /mnt/notes"
	expect "what the guest reads" "$(inside "$first" "cat /mnt/notes")" "written on day 1"
	cli instance list

	step "An image of that point, and a second machine from it"
	call POST "$api/volume_snapshots/capture_instance/$point" '{"image_name":"golden"}'
	job
	golden=$(jq -r '.resource_ids[0]' "$answer")
	run_machine "$golden" web2
	tell "$machine" "cat /mnt/notes"
	expect "what the second guest reads" "$(inside "$machine" "cat /mnt/notes")" "written on day 1"
	cli image list
	end_machines
}
