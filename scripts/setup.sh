#!/usr/bin/env bash
# setup.sh demo|test|test-long|bench: install what that needs and is not there. Quick and
# silent when all is there. Installs only as root on a system with apt;
# elsewhere it says what to install.
set -euo pipefail

# command:Debian package
demo="curl:curl jq:jq mkfs.ext4:e2fsprogs debugfs:e2fsprogs losetup:mount gcc:gcc"
test="$demo qemu-system-x86_64:qemu-system-x86 busybox:busybox-static qemu-img:qemu-utils qemu-nbd:qemu-utils mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs nbdinfo:libnbd-bin nbdkit:nbdkit fio:fio libvirtd:libvirt-daemon libvirtd:libvirt-daemon-driver-qemu"
long="$test nbdfuse:libnbd-bin strace:strace"
bench="$demo qemu-system-x86_64:qemu-system-x86 busybox:busybox-static qemu-img:qemu-utils restic:restic borg:borgbackup qemu-nbd:qemu-utils nbdkit:nbdkit fio:fio"

case "${1:-}" in
demo) need=$demo ;;
test) need=$test ;;
test-long) need=$long ;;
bench) need=$bench ;;
*)
	echo "usage: setup.sh demo|test|test-long|bench" >&2
	exit 2
	;;
esac

PATH=$PATH:/usr/sbin:/sbin # where mkfs and losetup live for users other than root

if ! command -v go >/dev/null; then
	echo "Go is missing: install the version that go.mod names from https://go.dev/dl/" >&2
	exit 1
fi

missing=()
for pair in $need; do
	command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
# A static link needs libc.a, which a bare gcc comes without.
if [ ! -e "/usr/lib/$(uname -m)-linux-gnu/libc.a" ] && [ -e /etc/debian_version ]; then
	missing+=(libc6-dev)
fi
[ ${#missing[@]} -gt 0 ] || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "missing: ${missing[*]}" >&2
	echo "install them (Debian: sudo apt-get install --no-install-recommends ${missing[*]}), then run this again." >&2
	# gcc and libc6-dev only make it faster; all else is needed.
	for package in "${missing[@]}"; do
		case $package in gcc | libc6-dev) ;; *) exit 1 ;; esac
	done
	exit 0
fi

echo "installing ${missing[*]} …"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -q -o DPkg::Lock::Timeout=180)
# An update that fails (a third party's source is down) need not matter.
if ! { "${apt[@]}" update || true; "${apt[@]}" install -y --no-install-recommends "${missing[@]}"; } </dev/null >"$log" 2>&1; then
	cat "$log" >&2
	echo "could not install ${missing[*]}; the lines above say why" >&2
	exit 1
fi
