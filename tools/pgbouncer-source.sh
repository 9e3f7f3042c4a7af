#!/usr/bin/env bash
# Prints the folder of PgBouncer's source, unpacked from Debian's source package of it, which is fetched once from the mirror that the
# machine uses and checked by its sum. PGBOUNCER_SOURCE=DIR is taken instead. Nothing of it is kept in the repository.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=$PWD/.cache/pgbouncer
archive=pgbouncer_1.25.2.orig.tar.gz
sum=924ad35113fd0a71c8e2dbe85b5d03445532e2b7b37a9f8a48983beea238b332
source=${PGBOUNCER_SOURCE:-$cache/pgbouncer-1.25.2}
if [ ! -e "$source/test/conftest.py" ]; then
    mkdir -p "$cache"
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -E '/debian/?$' | head -1)
    curl -fsS -o "$cache/$archive" "${mirror%/}/pool/main/p/pgbouncer/$archive"
    echo "$sum  $cache/$archive" | sha256sum --check --quiet
    tar xzf "$cache/$archive" -C "$cache"
fi
echo "$source"
