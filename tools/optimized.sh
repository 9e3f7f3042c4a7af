#!/usr/bin/env bash
# Makes target/optimized/pgsteady, the binary to deploy: built once to count what runs how often under load, and once more by those
# counts (the rustc book, "Profile-guided Optimization"). The load is pgbench, through `pgsteady dev` and with a pgbouncer.ini.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/target/optimized
host=$(rustc -vV | sed -n 's/^host: //p')
profdata=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
seconds=4 # of each load

say() { echo "== $*"; }
build() { # flags of rustc, target folder
    RUSTFLAGS="${RUSTFLAGS:-} $1" CARGO_TARGET_DIR=$2 cargo build --release --locked --target "$host" --bin pgsteady
}

say "building, to count"
build "-Cprofile-generate" "$work/counting"
counting=$work/counting/$host/release/pgsteady
counts=$work/counts.profdata

# What runs is ended, and its files go, in any case. The counts are written at the end of a process.
processes=()
folder=
end() {
    for process in "${processes[@]}"; do kill -INT "$process" 2>/dev/null || true; done
    for process in "${processes[@]}"; do wait "$process" || true; done
    processes=()
}
trap 'end; rm -rf "$folder"' EXIT

wait_for() { # what, then the command that succeeds when it is there
    local what=$1
    shift
    for _ in $(seq 600); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    echo "optimized.sh: $what did not come" >&2
    cat "$folder"/*.log >&2
    exit 1
}

bench() { # options of pgbench; what it says is shown when it fails
    echo "   pgbench $*"
    pgbench "$@" >"$folder/pgbench.log" 2>&1 || { cat "$folder/pgbench.log" >&2; return 1; }
}

load() { # connection string, then options of pgbench
    local url=$1
    shift
    bench -n -j 1 -T $seconds "$@" "$url"
}

count() {
    folder=$(mktemp -d -t pgsteady-optimized.XXXXXX)
    chmod 755 "$folder"
    mkdir -m 1777 "$folder/counts"
    export LLVM_PROFILE_FILE=$folder/counts/%p.profraw

    "$counting" dev --port 0 >"$folder/url" 2>"$folder/dev.log" &
    processes+=($!)
    wait_for "the cluster" grep -q '^postgresql://' "$folder/url"
    local url port
    url=$(grep -m 1 '^postgresql://' "$folder/url")
    port=$(sed 's,.*:\([0-9]*\)/.*,\1,' <<<"$url")
    bench -i -q -s 5 "$url"
    load "$url" -S -M simple -c 16
    load "$url" -S -M simple -c 64
    load "$url" -S -M extended -c 16
    load "$url" -S -M prepared -c 16
    load "$url" -M simple -c 16
    load "$url" -S -C -c 8
    echo "   results and COPY"
    psql -qAt -c 'SELECT * FROM pgbench_accounts' "$url" >/dev/null
    psql -q -c 'CREATE TABLE copied (LIKE pgbench_accounts)' "$url"
    psql -q -c 'COPY pgbench_accounts TO STDOUT' "$url" | psql -q -c 'COPY copied FROM STDIN' "$url"

    local as=()
    [ "$(id -u)" != 0 ] || as=(-u postgres)
    echo '"postgres" ""' >"$folder/users.txt"
    cat >"$folder/pgbouncer.ini" <<INI
[databases]
postgres = host=127.0.0.1 port=$port
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = $folder/counts
auth_type = trust
auth_file = $folder/users.txt
pool_mode = transaction
max_client_conn = 200
INI
    "$counting" pgbouncer "${as[@]}" "$folder/pgbouncer.ini" >"$folder/pgbouncer.log" 2>&1 &
    processes+=($!)
    wait_for "the proxy with a pgbouncer.ini" test -S "$folder/counts/.s.PGSQL.6432"
    url="host=$folder/counts port=6432 user=postgres dbname=postgres"
    load "$url" -S -M simple -c 16
    load "$url" -S -M extended -c 64
    end
    "$profdata" merge -o "$counts" "$folder"/counts/*.profraw
    rm -rf "$folder"
}

if [ "$counts" -nt "$counting" ]; then
    say "counted before"
else
    say "counting under load"
    count
fi

# Cargo builds anew for another name of the file, not for another content.
used=$work/$(sha256sum "$counts" | cut -c 1-16).profdata
[ -e "$used" ] || { rm -f "$work"/????????????????.profdata; cp "$counts" "$used"; }
say "building by the counts"
build "-Cprofile-use=$used" "$work/by-counts"
cp "$work/by-counts/$host/release/pgsteady" "$work/pgsteady"
say "target/optimized/pgsteady"
