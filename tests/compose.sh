#!/usr/bin/env bash
# docker-compose.yml as its users have it: up, a client that writes through pgsteady, the primary killed, the client goes on,
# the killed one is a standby again. No image is pulled: debootstrap makes a stand-in for the base (cached in .cache/).
# Usage: tests/compose.sh [BINARY], default target/release/pgsteady. Needs root for debootstrap, and a Docker daemon.
set -euo pipefail
cd "$(dirname "$0")/.."

export PGSTEADY_BINARY=${1:-target/release/pgsteady}
export PGSTEADY_BASE=pgsteady-test-base
export PGSTEADY_IMAGE=pgsteady-test
export POSTGRES_PASSWORD='compose: test'
port=16400
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
export PGSTEADY_PORT=127.0.0.1:$port
export COMPOSE_PROJECT_NAME=pgsteady-compose-$$
# passed by environment: it has a space and a colon in it
export PGPASSWORD=$POSTGRES_PASSWORD
PSQL=(psql -X -qAt -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$port" -U postgres postgres)

if docker compose version >/dev/null 2>&1; then COMPOSE=(docker compose); else COMPOSE=(docker-compose); fi
[ -x "$PGSTEADY_BINARY" ] || { echo "compose.sh: $PGSTEADY_BINARY is not built" >&2; exit 1; }

say() { echo "compose.sh: $*"; }
writer=
finish() {
    local status=$?
    [ -z "$writer" ] || kill "$writer" 2>/dev/null || true
    if [ $status -ne 0 ]; then "${COMPOSE[@]}" logs --tail=40 2>&1 | tail -150 || true; fi
    "${COMPOSE[@]}" down -v --remove-orphans >/dev/null 2>&1 || true
    docker image rm -f "$PGSTEADY_IMAGE" "$PGSTEADY_BASE" >/dev/null 2>&1 || true
    rm -f "${acks:-}" "${log:-}"
    exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

# Waits until a command succeeds; $1 is how many seconds it may take.
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || { say "not within the time: $*"; return 1; }
        sleep 0.2
    done
}

make_base() {
    docker image inspect "$PGSTEADY_BASE" >/dev/null 2>&1 && return
    local root=.cache/compose-base.tar
    if [ ! -f "$root" ]; then
        say "making a base image with debootstrap"
        local folder
        folder=$(mktemp -d)
        debootstrap --variant=minbase --include=postgresql-15,libssl3,libpam0g,ca-certificates bookworm "$folder/root" >"$folder/log" 2>&1 ||
            { tail -20 "$folder/log"; rm -rf --one-file-system "$folder"; return 1; }
        rm -rf "$folder"/root/var/cache/apt/* "$folder"/root/var/lib/apt/lists/*
        mkdir -p .cache
        tar -C "$folder/root" -cf "$root.new" . && mv "$root.new" "$root"
        rm -rf --one-file-system "$folder"
    fi
    docker import "$root" "$PGSTEADY_BASE" >/dev/null
}

on_node() { # node, SQL
    "${COMPOSE[@]}" exec -T "$1" sh -c "/usr/lib/postgresql/*/bin/psql -X -qAt -h /var/lib/pgsteady/run -U postgres postgres -c \"\$0\"" "$2"
}
is_primary() { [ "$(on_node "$1" 'select pg_is_in_recovery()')" = f ]; }
is_standby() { [ "$(on_node "$1" "select pg_is_in_recovery() and exists (select from pg_stat_wal_receiver where status = 'streaming')")" = t ]; }
primary() {
    local node
    for node in n1 n2 n3; do if is_primary $node 2>/dev/null; then echo $node; fi; done
}

# One connection; each acknowledged row is noted. The number is written again only if pgsteady says that this is safe.
write_rows() {
    coproc CLIENT { "${PSQL[@]}" -v ON_ERROR_STOP=0 -v VERBOSITY=sqlstate 2>&1; }
    local row=0 answer
    while kill -0 "$CLIENT_PID" 2>/dev/null; do
        echo "insert into rows values ($row) returning 'ok ' || id;" >&"${CLIENT[1]}" || break
        read -r answer <&"${CLIENT[0]}" || break
        case $answer in
            "ok $row") echo $row >>"$acks"; row=$((row + 1)) ;;
            *40001*) ;;
            *) echo "writer: row $row: $answer" >&2; row=$((row + 1)) ;;
        esac
    done
    echo "writer: the connection ended" >&2
    echo lost >>"$acks"
}
acknowledged() { grep -c '^[0-9]' "$acks"; }
more_than() { [ "$(acknowledged)" -gt "$1" ]; }

make_base
say "building and starting"
docker build -q -f deploy/Dockerfile --build-arg "BASE=$PGSTEADY_BASE" --build-arg "BINARY=$PGSTEADY_BINARY" -t "$PGSTEADY_IMAGE" . >/dev/null
log=$(mktemp)
"${COMPOSE[@]}" up -d --no-build >"$log" 2>&1 || { cat "$log"; exit 1; }
until_true 60 "${PSQL[@]}" -c 'create table rows (id int)'
until_true 60 is_standby n2
until_true 60 is_standby n3

acks=$(mktemp)
write_rows &
writer=$!
until_true 30 more_than 20
old=$(primary)
[ "$old" = n1 ] || { say "the primary is '$old', not n1"; exit 1; }
say "killing the primary $old after $(acknowledged) rows"
"${COMPOSE[@]}" kill "$old" >/dev/null 2>&1
before=$(acknowledged)
until_true 30 more_than $((before + 20))
new=$(primary)
say "the client goes on over $new: $(acknowledged) rows"
[ -n "$new" ] && [ "$new" != "$old" ] || { say "the primary is '$new'"; exit 1; }

"${COMPOSE[@]}" start "$old" >/dev/null 2>&1
until_true 120 is_standby "$old"
say "$old is a standby again"
after=$(acknowledged)
until_true 30 more_than $((after + 20))
kill "$writer"; wait "$writer" 2>/dev/null || true; writer=

! grep -q lost "$acks" || { say "the client was dropped"; exit 1; }
"${PSQL[@]}" -c 'select id, count(*) from rows group by id' | tr '|' ' ' | sort >"$acks.there"
lost=$(grep '^[0-9]' "$acks" | sort | join -a 1 - "$acks.there" | awk '$2 != 1' | wc -l)
rm -f "$acks.there"
say "$(acknowledged) rows acknowledged, $lost of them not there exactly once"
[ "$lost" = 0 ]
[ "$(primary | wc -w)" = 1 ]
say "done"
