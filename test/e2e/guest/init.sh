#!/bin/busybox sh
# The first process of a guest: loads modules, then runs what comes over a
# serial port, of which the kernel's command line tells (control=), else the
# second one. The first one is the kernel's console as well.
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

# A disk that the machine was booted from has a filesystem for data.
if [ -b /dev/vda2 ]; then
	mount -t ext4 /dev/vda2 /mnt || echo "guest: no data filesystem"
fi
# Who presses the power button wants the machine off.
mkdir -p /etc/acpi/PWRF
printf '#!/bin/sh\numount /mnt\npoweroff -f\n' >/etc/acpi/PWRF/00000080
chmod +x /etc/acpi/PWRF/00000080
acpid -d >/run/acpid.log 2>&1 &
mkdir -p /var/run
for channel in /dev/vport*; do
	if [ -e /host/bin/qemu-ga ] && [ -c "$channel" ]; then
		qemu-ga -m virtio-serial -p "$channel" -t /run >/run/agent.log 2>&1 &
	fi
done

port=ttyS1
for word in $(cat /proc/cmdline); do
	case $word in control=*) port=${word#control=} ;; esac
done
dmesg -n 1 # the port may be the console
stty -F /dev/$port raw -echo
exec 3<>/dev/$port
n=0
echo 0 >/run/command
# Of a command that does not end, the console tells what it waits for, before
# whoever sent it gives up.
(
	seen=0 ticks=0
	while sleep 10; do
		read -r now </run/command
		if [ "$now" = 0 ] || [ "$now" != "$seen" ]; then
			seen=$now ticks=0
			continue
		fi
		ticks=$((ticks + 1))
		[ $ticks = 9 ] || continue
		{
			echo "guest: a command does not end"
			dmesg | tail -n 30
			ps -o pid,ppid,stat,args
			for p in /proc/[0-9]*; do
				args=$(tr '\0' ' ' <"$p/cmdline")
				[ -n "$args" ] && echo "$p $args" && cat "$p/stack"
			done
		} >/dev/console 2>&1
	done
) </dev/null >/dev/null 2>&1 3>&- &
echo ready >&3
while read -r tag line <&3; do
	n=$((n + 1))
	command=$(echo "$line" | base64 -d)
	echo $n >/run/command
	# Each has a file of its own: what a command leaves running may go on
	# writing to it.
	(eval "$command") </dev/null >/run/output.$n 2>&1 3>&-
	code=$?
	echo 0 >/run/command
	size=$(stat -c %s /run/output.$n)
	echo "done $tag $code $size" >&3
	head -c "$size" /run/output.$n >&3
	rm /run/output.$n
done
poweroff -f
