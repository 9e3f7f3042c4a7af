#!/usr/bin/env bash
# Runs PgBouncer's own tests (see pgbouncer-source.sh) against `pgsteady` called as `pgbouncer`. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$PWD/target/release/pgsteady
cache=$PWD/.cache/pgbouncer
mkdir -p "$cache"

if [ ! -d "$cache/venv" ]; then
    # the system's, which the account of PostgreSQL may run too
    /usr/bin/python3 -m venv "$cache/venv"
    "$cache/venv/bin/pip" -q install pytest pytest-asyncio pytest-timeout pytest-xdist filelock 'psycopg[binary]==3.2.13'
fi

source=$(tools/pgbouncer-source.sh)

# Where the account of PostgreSQL may write: PgBouncer and PostgreSQL refuse to be root.
work=$(mktemp -d /tmp/pXXX) # short: the path of a Unix socket ends after 107 bytes
trap 'rm -rf "$work"' EXIT
cp -r "$source" "$work/source"
cp -r "$cache/venv" "$work/venv"
cp "$program" "$work/pgsteady"
ln -sf "$work/pgsteady" "$work/source/pgbouncer" # also where PgBouncer itself was built
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
