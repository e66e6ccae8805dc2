#!/bin/sh
# Makes what `make vm-test` boots: a Debian 12 root file system with its kernel (6.1), that kernel's
# headers and bcc, systemd as process 1, and an SSH server, and what `make overhead` measures; and a
# plain Debian 12 folder to install packages in. Made once; kept in build/vm, or where VEDETTE_VM names
# a folder. packaging/vm/add-kernel.sh adds other kernels.
#
#   root.ext4, vmlinuz, initrd.img   the machine's disk, kernel and initial RAM disk
#   key                              who has it may log in as root
#   plain/                           a Debian 12 without anything that the packages bring
#
# Root is needed (debootstrap). It downloads some 400 MB from MIRROR and takes some minutes.
set -eu

cd "$(dirname "$0")/../.."
MIRROR=${MIRROR:-http://deb.debian.org/debian}
CACHE=${VEDETTE_VM:-build/vm}
PACKAGES=systemd-sysv,dbus,udev,kmod,linux-image-amd64,linux-headers-amd64,initramfs-tools,zstd,\
openssh-server,iproute2,procps,ca-certificates,apt-utils,python3,python3-bpfcc,netcat-openbsd,\
bash-completion,gcc,libc6-dev,make,redis-server,redis-tools,nginx-light,apache2-utils

say() { printf 'make-image: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

[ "$(id -u)" = 0 ] || die "debootstrap needs root; run this as root"
for program in debootstrap mke2fs qemu-system-x86_64 ssh-keygen; do
    command -v "$program" >/dev/null || die "no $program; run packaging/machine-setup.sh vm"
done
mkdir -p "$CACHE"
CACHE=$(cd "$CACHE" && pwd)
# What was made by another version of this script is made again.
MARK=$(sha256sum "$0" | cut -d ' ' -f 1)

# strap FOLDER INCLUDED: a tree, whole or not at all.
strap() {
    [ ! -d "$1" ] || return 0
    say "debootstrap into $1 (log: $1.log)"
    rm -rf "$1.partial"
    debootstrap --variant=minbase ${2:+--include="$2"} bookworm "$1.partial" "$MIRROR" >"$1.log" 2>&1 ||
        die "debootstrap failed; see $1.log"
    mv "$1.partial" "$1"
}

strap "$CACHE/plain" ca-certificates
if [ "$(cat "$CACHE/mark" 2>/dev/null)" = "$MARK" ]; then
    exit 0
fi
rm -f "$CACHE/mark"
[ "$(cat "$CACHE/root.mark" 2>/dev/null)" = "$MARK" ] || rm -rf "$CACHE/root"
echo "$MARK" >"$CACHE/root.mark"
strap "$CACHE/root" "$PACKAGES"
root=$CACHE/root

[ -e "$CACHE/key" ] || ssh-keygen -q -t ed25519 -N '' -C vedette-vm -f "$CACHE/key"
mkdir -p -m 700 "$root/root/.ssh"
cp "$CACHE/key.pub" "$root/root/.ssh/authorized_keys"
echo vedette-vm >"$root/etc/hostname"
printf '127.0.0.1 localhost vedette-vm\n' >"$root/etc/hosts"
printf '/dev/vda / ext4 defaults 0 1\n' >"$root/etc/fstab"
# Made at the first boot, as on any host that is made of an image.
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"
printf '[Match]\nName=en*\n[Network]\nDHCP=yes\n' >"$root/etc/systemd/network/vm.network"
mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=persistent\nForwardToConsole=no\n' \
    >"$root/etc/systemd/journald.conf.d/vm.conf"
# A machine without KVM is slow: it starts what is asked for, and waits for what it must.
chroot "$root" systemctl -q enable systemd-networkd ssh
chroot "$root" systemctl -q disable redis-server nginx
chroot "$root" systemctl -q mask apt-daily.timer apt-daily-upgrade.timer man-db.timer \
    dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    systemd-networkd-wait-online.service
printf 'MODULES=list\nCOMPRESS=gzip\n' >"$root/etc/initramfs-tools/conf.d/vm"
printf 'virtio_pci\nvirtio_blk\next4\n' >"$root/etc/initramfs-tools/modules"
chroot "$root" update-initramfs -u >"$CACHE/initramfs.log" 2>&1 ||
    die "update-initramfs failed; see $CACHE/initramfs.log"
cp "$root"/boot/vmlinuz-6.1.* "$CACHE/vmlinuz"
cp "$root"/boot/initrd.img-6.1.* "$CACHE/initrd.img"

say "the disk"
rm -f "$CACHE/root.ext4"
mke2fs -q -t ext4 -L root -d "$root" "$CACHE/root.ext4" 5G
echo "$MARK" >"$CACHE/mark"
say "$CACHE is ready"
