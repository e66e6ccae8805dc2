#!/bin/sh
# Builds the wheel and the source distribution: dist/. Run by `make dist`; `make-dist.sh wheel` makes
# the wheel alone.
set -eu

cd "$(dirname "$0")/.."
mkdir -p dist
rm -f dist/*.whl
# Compiled files go below build/wheel, so that the checkout's own are not touched.
.venv/bin/python setup.py -q build --build-base build/wheel bdist_wheel --dist-dir dist \
    --bdist-dir build/wheel/bdist >build/wheel.log 2>&1 ||
    { tail -n 30 build/wheel.log >&2; exit 1; }
[ "${1:-}" = wheel ] || {
    rm -f dist/*.tar.gz
    .venv/bin/python setup.py -q sdist --dist-dir dist >build/sdist.log 2>&1 ||
        { tail -n 30 build/sdist.log >&2; exit 1; }
}
ls dist
