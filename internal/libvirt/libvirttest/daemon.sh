# daemon.sh DIR NAMESPACES: run virtlogd and libvirtd as the first process of mount and pid
# namespaces of their own, until stdin ends. It takes the place of init: libvirt
# waits for processes whose parent is gone to be reaped. NAMESPACES are those that
# QEMU gets of its own, as qemu.conf has them.
set -eu
dir=$1
mkdir -p "$dir"/{run,lib,etc,log,cache}
for place in /run/libvirt:run /var/lib/libvirt:lib /etc/libvirt:etc /var/log/libvirt:log /var/cache/libvirt:cache; do
	mkdir -p "${place%%:*}"
	mount --bind "$dir/${place##*:}" "${place%%:*}"
done
cat >/etc/libvirt/libvirtd.conf <<-END
	listen_tls = 0
	auth_unix_ro = "none"
	auth_unix_rw = "none"
	log_outputs = "3:stderr"
END
cat >/etc/libvirt/qemu.conf <<-END
	user = "root"
	group = "root"
	security_driver = "none"
	namespaces = [$2]
	cgroup_controllers = []
END
# Its own user is looked up, although the machines here run as root.
for file in passwd group; do
	cp "/etc/$file" "$dir/$file"
	mount --bind "$dir/$file" "/etc/$file"
done
grep -q ^libvirt-qemu: /etc/passwd || echo "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin" >>/etc/passwd
for group in libvirt-qemu kvm; do
	grep -q "^$group:" /etc/group || echo "$group:x:64055:" >>/etc/group
done
exec 3<&0
virtlogd &
libvirtd -f /etc/libvirt/libvirtd.conf &
{ read -r _ || true; } <&3 &
wait -n # for whatever ends first
