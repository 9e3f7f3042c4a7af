#!/usr/bin/env bash
# Runs PgBouncer's own tests, from Debian's source package of it, against `pgsteady` called as `pgbouncer`.
# PGBOUNCER_SOURCE=DIR takes an unpacked source instead. Arguments go to pytest. Nothing of it is kept in the repository.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$PWD/target/release/pgsteady
cache=$PWD/.cache/pgbouncer
mkdir -p "$cache"

if [ ! -d "$cache/venv" ]; then
    python3 -m venv "$cache/venv"
    "$cache/venv/bin/pip" -q install pytest pytest-asyncio pytest-timeout pytest-xdist filelock 'psycopg[binary]==3.2.13'
fi

# Debian's source package, from the mirror that the machine uses, checked by its sum.
source=${PGBOUNCER_SOURCE:-}
archive=pgbouncer_1.25.2.orig.tar.gz
sum=924ad35113fd0a71c8e2dbe85b5d03445532e2b7b37a9f8a48983beea238b332
if [ -z "$source" ] && ! compgen -G "$cache/pgbouncer-*/test/conftest.py" >/dev/null; then
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -E '/debian/?$' | head -1)
    curl -fsS -o "$cache/$archive" "${mirror%/}/pool/main/p/pgbouncer/$archive"
    echo "$sum  $cache/$archive" | sha256sum --check --quiet
    tar xzf "$cache/$archive" -C "$cache"
fi
source=${source:-$(ls -d "$cache"/pgbouncer-*/ | head -1)}

# Where the account of PostgreSQL may write: PgBouncer and PostgreSQL refuse to be root.
work=$(mktemp -d /tmp/pXXX) # short: the path of a Unix socket ends after 107 bytes
trap 'rm -rf "$work"' EXIT
cp -r "$source" "$work/source"
cp -r "$cache/venv" "$work/venv"
cp "$program" "$work/pgsteady"
ln -s "$work/pgsteady" "$work/source/pgbouncer"
printf 'ldap_support = yes\ntls_support = yes\n' >"$work/source/config.mak"
bin=$(dirname "$(ls /usr/lib/postgresql/*/bin/initdb | head -1)")
mkdir "$work/t"
run=(env "TMPDIR=$work/t" HAVE_IPV6_LOCALHOST=1 "PATH=$bin:/usr/sbin:$PATH"
    "$work/venv/bin/python" -m pytest -p no:cacheprovider -q --tb=short -n 6 --timeout 60 "$@")
if [ "$(id -u)" = 0 ]; then
    chown -R postgres "$work"
    cd "$work/source/test"
    exec_as=(setpriv --reuid=postgres --regid=postgres --init-groups)
    HOME=$work "${exec_as[@]}" "${run[@]}"
else
    cd "$work/source/test"
    "${run[@]}"
fi
