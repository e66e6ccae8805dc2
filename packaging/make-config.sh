#!/bin/sh
# Writes the packages' default configuration: make-config.sh FOLDER. It is what packaging/*.yaml say,
# but for the places that a package has.
set -eu

here=$(dirname "$0")
mkdir -p "$1"
sed 's|^    # - /usr/share/vedette/rules/vedette.yaml$|    - /usr/share/vedette/rules|' \
    "$here/vedette-agent.yaml" >"$1/agent.yaml"
sed -e 's|^  path: vedette.db$|  path: /var/lib/vedette/vedette.db|' \
    -e 's|^  files: \[\]$|  files: [/usr/share/vedette/rules/sequences.yaml]|' \
    "$here/vedette-aggregator.yaml" >"$1/aggregator.yaml"
