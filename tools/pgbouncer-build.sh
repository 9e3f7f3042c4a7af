#!/usr/bin/env bash
# Builds PgBouncer from its source, once, and prints the path of the program.
set -euo pipefail
cd "$(dirname "$0")/.."
source=$(tools/pgbouncer-source.sh)
if [ ! -x "$source/pgbouncer" ]; then
    cd "$source"
    ./configure --without-cares --without-systemd >configure.log
    make -s -j2 pgbouncer >make.log
fi
echo "$source/pgbouncer"
