#!/bin/sh
# Builds the Debian packages: build/deb/*.deb. Run by `make deb`; needs the venv that `make build`
# makes, and debhelper (packaging/machine-setup.sh deb).
#
# Dependencies that Debian 12 has too old or not at all (google-re2, msgspec, pySigma, typer, zmq …)
# go into a virtual environment of the package's own, /usr/lib/vedette, which also sees Debian's
# packages, for bcc: it belongs to the system's LLVM and kernel headers, the others to us.
#
# Whoever builds packages for others is whom their users write to: DEBFULLNAME and DEBEMAIL, as
# Debian's tools take them, are the maintainer's.
set -eu

cd "$(dirname "$0")/.."
ROOT=$PWD
PYTHON=$ROOT/.venv/bin/python
VERSION=$("$PYTHON" -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')
OUT=build/deb
SOURCE=$OUT/vedette-$VERSION
STAGE=$SOURCE/debian/stage
HOME_=$STAGE/usr/lib/vedette
SITE=$HOME_/lib/python3.11/site-packages

say() { printf 'make-deb: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

[ "$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = 3.11 ] ||
    die "packages are for Debian 12, whose Python is 3.11; run: make build PYTHON=/usr/bin/python3.11"
MAINTAINER="${DEBFULLNAME:-The Vedette authors} <${DEBEMAIL:-vedette@localhost}>"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || date +%s)
export SOURCE_DATE_EPOCH

rm -rf "$SOURCE" "$OUT"/*.deb "$OUT"/*.buildinfo "$OUT"/*.changes
mkdir -p "$SITE" "$HOME_/bin" "$STAGE/man" "$STAGE/docs" "$STAGE/etc/vedette"
cp -a packaging/debian/. "$SOURCE/debian/"
cp packaging/systemd/vedette-agent.service packaging/systemd/vedette-aggregator.service \
    "$SOURCE/debian/"

awk -v maintainer="$MAINTAINER" '/^Maintainer:/ { $0 = "Maintainer: " maintainer } { print }' \
    packaging/debian/control >"$SOURCE/debian/control"

say "the wheel"
packaging/make-dist.sh wheel

say "the virtual environment"
"$PYTHON" -m pip install -qq --disable-pip-version-check --no-compile --no-warn-conflicts \
    --target "$SITE" "dist/vedette-$VERSION"-cp311-*.whl
rm -rf "$SITE/bin"
(
    cd "$SITE"
    find . -name __pycache__ -prune -exec rm -rf {} +
    # What no program reads: dependencies' tests, and headers and sources of what is compiled.
    find . -type d \( -name tests -o -name test \) -not -path './vedette/*' -prune \
        -exec rm -rf {} +
    find . -type f \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi' -o -name '*.c' -o \
        -name '*.h' -o -name '*.a' \) -not -path './vedette/bpf/*' -delete
    find . -type d -empty -delete
    find . -type f -not -name '*.so*' -exec chmod 644 {} +
)
ln -s /usr/bin/python3.11 "$HOME_/bin/python3"
cat >"$HOME_/pyvenv.cfg" <<END
home = /usr/bin
include-system-site-packages = true
version = 3.11
END
for command in vedette:aggregator vedette-agent:agent; do
    name=${command%:*}
    cat >"$HOME_/bin/$name" <<END
#!/usr/lib/vedette/bin/python3 -I
from vedette.${command#*:}.cli import main

main()
END
    chmod 755 "$HOME_/bin/$name"
done

say "rules, manual pages, shell completion, configuration"
mkdir -p "$STAGE/usr/share/vedette"
cp -a rules "$STAGE/usr/share/vedette/rules"
find "$STAGE/usr/share/vedette/rules" \( -name '*.py' -o -name __pycache__ \) -prune -exec rm -rf {} +
PYTHONPATH=$SITE "$PYTHON" packaging/pages.py "$STAGE"
cp CHANGELOG.md README.md docs/*.md "$STAGE/docs/"
packaging/make-config.sh "$STAGE/etc/vedette"

cat >"$SOURCE/debian/changelog" <<END
vedette ($VERSION) bookworm; urgency=medium

  * See /usr/share/doc/vedette-common/CHANGELOG.md.

 -- $MAINTAINER  $(date -R -u -d "@$SOURCE_DATE_EPOCH")
END

say "the packages"
(cd "$SOURCE" && dpkg-buildpackage -b -us -uc -ui >../build.log 2>&1) ||
    { tail -n 40 "$OUT/build.log" >&2; die "dpkg-buildpackage failed; all of it is in $OUT/build.log"; }
ls -l "$OUT"/*.deb
