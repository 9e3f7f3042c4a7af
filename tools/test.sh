#!/usr/bin/env bash
# Every check, in one profile, with the time of each stage: what `make test` and CI run.
set -euo pipefail
cd "$(dirname "$0")/.."

# A frame for the end-to-end tests' clusters; removed with everything in it, whatever happens.
PGSTEADY_TEST_DIR=$(mktemp -d /tmp/pgsteady-test.XXXXXX)
export PGSTEADY_TEST_DIR
chmod 711 "$PGSTEADY_TEST_DIR"
trap 'rm -rf "$PGSTEADY_TEST_DIR" "$PGSTEADY_TEST_DIR.log"' EXIT
[ -z "${CI:-}" ] || export CARGO_INCREMENTAL=0

started=$SECONDS
stage() { # name, then the command
    local name=$1 begun=$SECONDS
    shift
    echo "== $name"
    if ! "$@"; then
        echo "== $name FAILED after $((SECONDS - begun)) s"
        exit 1
    fi
    echo "== $name: $((SECONDS - begun)) s (total $((SECONDS - started)) s)"
}

stage install tools/install.sh test
stage format cargo fmt --all --check
stage build cargo build --workspace --bins --locked
stage "build tests" cargo test --workspace --locked --no-run --quiet
stage clippy cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
stage documentation env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked --quiet
# What failed stands at the end as well, where whoever reads a long log looks first.
tests() {
    local log=$PGSTEADY_TEST_DIR.log
    cargo test --workspace --locked --no-fail-fast 2>&1 | tee "$log" || {
        echo "== what failed"
        grep -E -A 4 "panicked at|^test .* FAILED" "$log" | grep -v "^stack backtrace:\|^note:" | tail -n 60
        return 1
    }
}
stage tests tests
