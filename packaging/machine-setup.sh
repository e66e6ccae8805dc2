#!/bin/sh
# Prepares a Debian 12 machine for building, testing and showing Vedette.
#
#   machine-setup.sh packages   install the Debian packages that are missing
#   machine-setup.sh headers    let bcc find kernel headers for the running kernel
#   machine-setup.sh            both
#   machine-setup.sh fuzz       install what `make fuzz` needs besides
#   machine-setup.sh bench      install the servers that `make overhead` measures
#   machine-setup.sh deb        install what `make deb` needs besides
#   machine-setup.sh vm         install what `make vm-test` needs besides
#
# Does nothing, and says nothing, where nothing is missing. Exit code 1: something could not be
# done; the message names it and its cure.
set -eu

PACKAGES="gcc libc6-dev make python3 python3-venv python3-dev python3-bpfcc linux-headers-amd64
openssh-server openssh-client sshpass iproute2 util-linux postgresql systemd"

say() { printf 'machine-setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

need_root() {
    [ "$(id -u)" = 0 ] || die "$1 needs root; run this as root"
}

# Packages that bring a service must not start it: while they are installed, a policy (the one
# that Debian defines for this, /usr/sbin/policy-rc.d) says no. One that exists is left alone.
apt_install() {
    policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then
        policy=
    else
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT INT TERM
    fi
    status=0
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@" >&2 ||
        status=$?
    if [ -n "$policy" ]; then
        rm -f "$policy"
        trap - EXIT INT TERM
    fi
    return "$status"
}

packages() {
    command -v dpkg-query >/dev/null ||
        die "this is no Debian; install the equivalents of: $(echo $PACKAGES)"
    missing=
    for package in $PACKAGES; do
        installed "$package" || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    need_root "installing$missing"
    say "installing$missing"
    apt-get update -q >&2 || say "apt-get update failed; going on with the lists that are there"
    # shellcheck disable=SC2086  # a list of words
    apt_install $missing ||
        die "apt-get could not install$missing; its message is above. Install them by hand, then run this again"
    # Servers are used as programs only. An installation that was there before is not touched.
    for pair in openssh-server:ssh postgresql:postgresql redis-server:redis-server \
        nginx-light:nginx; do
        package=${pair%:*} service=${pair#*:}
        case " $missing " in
        *" $package "*)
            # It knows both systemd's links and those of /etc/rc?.d, with and without systemctl.
            if update-rc.d "$service" disable >/dev/null 2>&1; then
                say "$package was installed with its service off (systemctl enable $service turns it on)"
            else
                say "$package was installed, and its service starts at the next boot (systemctl disable $service turns it off)"
            fi
            ;;
        esac
    done
}

headers() {
    release=$(uname -r)
    modules=/lib/modules/$release
    # As bcc looks for them: Debian has generated headers in build, the others in source.
    for place in build source; do
        [ ! -d "$modules/build" ] || [ ! -d "$modules/$place/include/linux" ] || return 0
    done
    [ ! -e /sys/kernel/kheaders.tar.xz ] || return 0
    need_root "arranging kernel headers"
    if apt-cache show "linux-headers-$release" >/dev/null 2>&1; then
        say "installing linux-headers-$release"
        apt_install "linux-headers-$release" ||
            die "apt-get could not install linux-headers-$release; its message is above"
        return 0
    fi

    # No package has this kernel's headers. bcc wants some to compile against; any recent Debian
    # ones do, since the programs take every layout from the kernel's BTF and none from headers.
    newest=$(find /usr/src -maxdepth 1 -name 'linux-headers-*-amd64' | sort -V | tail -n 1)
    [ -n "$newest" ] || die "no headers in /usr/src; apt-get install linux-headers-amd64"
    common=${newest%-amd64}-common
    [ -d "$common" ] || die "$common is missing; apt-get install --reinstall linux-headers-amd64"
    for place in build source; do
        if [ -e "$modules/$place" ] || [ -L "$modules/$place" ]; then
            die "$modules/$place exists but has no headers; it is not overwritten. Make it lead to the kernel's headers, or remove it and run this again"
        fi
    done
    mkdir -p "$modules"
    ln -s "$newest" "$modules/build"
    ln -s "$common" "$modules/source"
    say "kernel $release has no packaged headers: $modules/build and source now lead to Debian's ${newest#/usr/src/} (to undo: rm $modules/build $modules/source)"
}

case ${1:-all} in
packages) packages ;;
headers) headers ;;
all) packages; headers ;;
fuzz) PACKAGES="clang-14 libclang-rt-14-dev"; packages ;;
bench) PACKAGES="redis-server redis-tools nginx-light apache2-utils"; packages ;;
deb) PACKAGES="debhelper dpkg-dev binutils"; packages ;;
vm) PACKAGES="debhelper dpkg-dev binutils debootstrap e2fsprogs lintian qemu-system-x86 openssh-client"
    packages ;;
*) die "unknown argument $1; expected packages, headers, fuzz, bench, deb, vm or nothing" ;;
esac
