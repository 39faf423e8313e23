#!/bin/busybox sh
# The first and only process of a guest: loads modules, then runs what comes
# over the second serial port. The first one is the kernel's console.
/bin/busybox --install -s /bin
export PATH=/host/bin:/bin HOME=/run
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

while read -r module parameters; do
	# Parameters are words of their own.
	# shellcheck disable=SC2086
	insmod "/modules/$module.ko" $parameters || {
		echo "guest: cannot load $module"
		poweroff -f
	}
done </modules/order

ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
	ip link set eth0 up
	ip addr add 10.0.2.15/24 dev eth0
fi

stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
echo ready >&3
n=0
while read -r line <&3; do
	n=$((n + 1))
	command=$(echo "$line" | base64 -d)
	# Each has a file of its own: what a command leaves running may go on
	# writing to it.
	(eval "$command") </dev/null >/run/output.$n 2>&1 3>&-
	code=$?
	size=$(stat -c %s /run/output.$n)
	echo "done $code $size" >&3
	head -c "$size" /run/output.$n >&3
	rm /run/output.$n
done
poweroff -f
