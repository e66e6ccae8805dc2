#!/bin/sh
# Adds another kernel of Debian, with its own headers, to what make-image.sh made.
#
#   add-kernel.sh SUITE    that of SUITE (bookworm-backports, trixie, trixie-backports, sid …): what
#                          its linux-image-amd64 names
#
#   kernels/SUITE/vmlinuz, initrd.img   the kernel and its initial RAM disk, in build/vm; its modules
#                                       and headers are on the machine's disk
#
# Does nothing where it is there. Root is needed (chroot).
set -eu

cd "$(dirname "$0")/../.."
MIRROR=${MIRROR:-http://deb.debian.org/debian}
CACHE=${VEDETTE_VM:-build/vm}
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

say() { printf 'add-kernel: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

suite=${1:-}
case $suite in
bookworm) exit 0 ;; # make-image.sh has it
'' | *[!a-z-]*) die "name a suite of Debian, as in: add-kernel.sh bookworm-backports" ;;
esac
[ "$(id -u)" = 0 ] || die "chroot needs root; run this as root"
[ -e "$CACHE/mark" ] || die "no image in $CACHE; run packaging/vm/make-image.sh"
CACHE=$(cd "$CACHE" && pwd)
root=$CACHE/root
kernel=$CACHE/kernels/$suite
# A new image has none of them.
MARK=$(cat "$CACHE/mark" "$0" | sha256sum | cut -d ' ' -f 1)
[ "$(cat "$kernel/mark" 2>/dev/null)" != "$MARK" ] || exit 0
rm -rf "$kernel"
mkdir -p "$kernel/apt/lists/partial" "$kernel/apt/archives/partial"

# apt with this suite alone, and nothing of this machine's own lists.
echo "deb [signed-by=$KEYRING] $MIRROR $suite main" >"$kernel/apt/sources.list"
apt="-q -o Dir::Etc::sourcelist=$kernel/apt/sources.list -o Dir::Etc::sourceparts=/dev/null
    -o Dir::Etc::preferencesparts=/dev/null -o Dir::State::lists=$kernel/apt/lists -o Dir::Cache=$kernel/apt
    -o Dir::State::status=/dev/null -o APT::Architecture=amd64 -o APT::Sandbox::User=root
    -o APT::Install-Recommends=false"
say "the kernel of $suite"
# shellcheck disable=SC2086  # a list of words
{
    apt-get $apt update >&2 || die "apt-get could not read $MIRROR $suite"
    release=$(apt-cache $apt depends linux-image-amd64 |
        sed -n 's/^ *Depends: linux-image-\([0-9].*-amd64\)$/\1/p')
    [ -n "$release" ] || die "linux-image-amd64 of $suite names no kernel"
    # An image is one package or several, by its version.
    names=$(apt-cache $apt depends --recurse --no-suggests --no-conflicts --no-breaks \
        --no-replaces --no-enhances "linux-image-$release" "linux-headers-$release" |
        grep -F -x -e "linux-image-$release" -e "linux-base-$release" -e "linux-binary-$release" \
            -e "linux-modules-$release" -e "linux-headers-$release" -e "linux-headers-${release%-amd64}-common" | sort -u)
    (cd "$kernel" && apt-get $apt download $names >&2) || die "apt-get could not download $names"
}
for package in "$kernel"/*.deb; do
    # Not into /lib itself, which is a link in the tree.
    dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$root"
done
# Newer packages have beside the modules what others have in /boot, where mkinitramfs looks.
for name in vmlinuz config; do
    [ -e "$root/boot/$name-$release" ] ||
        cp "$root/lib/modules/$release/$name" "$root/boot/$name-$release"
done
chroot "$root" depmod "$release"
chroot "$root" mkinitramfs -o "/boot/initrd.img-$release" "$release" >"$kernel/initramfs.log" 2>&1 ||
    die "mkinitramfs failed; see $kernel/initramfs.log"
cp "$root/boot/vmlinuz-$release" "$kernel/vmlinuz"
cp "$root/boot/initrd.img-$release" "$kernel/initrd.img"
rm -rf "$kernel"/*.deb "$kernel/apt"

say "the disk, with $release"
rm -f "$CACHE/root.ext4"
mke2fs -q -t ext4 -L root -d "$root" "$CACHE/root.ext4" 5G
echo "$MARK" >"$kernel/mark"
