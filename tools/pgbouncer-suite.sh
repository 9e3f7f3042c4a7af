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
as=()
if [ "$(id -u)" = 0 ]; then
    chown -R postgres "$work"
    export HOME=$work
    as=(setpriv --reuid=postgres --regid=postgres --init-groups)
fi
cd "$work/source/test"
suite() { # the driver's implementation, then arguments of pytest
    local driver=$1
    shift
    "${as[@]}" env "TMPDIR=$work/t" "PSYCOPG_IMPL=$driver" HAVE_IPV6_LOCALHOST=1 "PATH=$work/bin:$bin:/usr/sbin:$PATH" \
        "$work/venv/bin/python" -m pytest -p no:cacheprovider -q --tb=short --timeout 60 "$@"
}
# Cases with a firewall have a network of their own, in which they may do what they ask sudo for. The latency that one of them wants
# is not to be had in every kernel, and is left out.
with_firewall() {
    mkdir -p "$work/bin"
    printf '#!/bin/sh\n[ "$1" = tc ] && exit 0\nexec "$@"\n' >"$work/bin/sudo"
    chmod 755 "$work/bin/sudo"
    export USE_SUDO=1 XTABLES_LOCKFILE=$work/t/xtables.lock
    local may='--inh-caps=+net_admin,+net_raw --ambient-caps=+net_admin,+net_raw'
    as=(unshare --net sh -c "ip link set lo up; exec setpriv --reuid=postgres --regid=postgres --init-groups $may \"\$@\"" -)
    suite binary test_timeouts.py -k 'drop_traffic or server_check_delay or cancel_wait_timeout'
}
if [ $# -gt 0 ]; then
    suite binary -n 6 "$@"
else
    # The binary build of the driver ends this case with a TypeError of its own, with PgBouncer itself too.
    long=test_statement_name_longer_than_pkt_buf
    suite binary -n 6 -k "not $long"
    suite python test_prepared.py -k "$long"
    [ "$(id -u)" != 0 ] || with_firewall
fi
