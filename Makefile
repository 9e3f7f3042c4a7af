# Two commands do everything on a fresh Debian or Ubuntu machine with Rust: `make demo` and `make test`.

.PHONY: help demo test lint doc guards storm optimized bench bench-failover regress pgbouncer differential compose fuzz clean

help: ## What there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

demo: ## A throwaway cluster, three kills of the primary under load, and a report
	@tools/install.sh demo
	cargo build --release --locked --bin pgsteady
	target/release/pgsteady dev --drill 3

test: ## Every check: format, build, clippy, documentation, all tests (installs what is missing)
	@tools/test.sh

lint: ## Format and clippy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

doc: ## The documentation of the code, in target/doc
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked

guards: ## Each guard of docs/guards.md taken away in a copy: some test has to fail (ten minutes)
	@tools/install.sh test
	cargo test --locked -p end-to-end --test guards -- --ignored --nocapture

storm: ## Faults at random on hosts whose links are cut, as root (half an hour; STORM_SEED=N repeats one, STORM_FAULTS=N)
	@tools/install.sh test
	cargo build --release --locked --bin pgsteady
	PGSTEADY_BIN=$(CURDIR)/target/release/pgsteady cargo test --locked -p end-to-end --test storm -- --ignored --nocapture

optimized: ## target/optimized/pgsteady, the binary to deploy: built twice, the second time by what ran under load (15 minutes)
	@tools/install.sh optimized
	tools/optimized.sh

bench: optimized ## CPU time per transaction beside PgBouncer's, ten minutes when all is built; writes bench/results.json, .md and .svg
	@tools/install.sh bench
	cargo build --release --locked -p bench
	PGSTEADY_BIN=$(CURDIR)/target/optimized/pgsteady target/release/bench

bench-failover: ## Time without writes beside Patroni and HAProxy, as root, about half an hour; JSON in target/bench-failover.json
	@tools/install.sh bench-failover
	cargo build --release --locked -p pgsteady -p bench
	PGSTEADY_BIN=$(CURDIR)/target/release/pgsteady target/release/bench-failover

regress: ## PostgreSQL's own regression suite through session and transaction pooling (ten minutes)
	@tools/install.sh regress
	cargo build --release --locked --bin pgsteady
	PGSTEADY_BIN=$(CURDIR)/target/release/pgsteady cargo test --locked -p end-to-end --test regress -- --ignored --nocapture

pgbouncer: ## PgBouncer's own tests against pgsteady called as pgbouncer (three minutes)
	@tools/install.sh pgbouncer
	cargo build --release --locked --bin pgsteady
	tools/pgbouncer-suite.sh

differential: ## What PgBouncer itself says in the conversations of the tests, beside the record (two minutes; UPDATE=1 writes it)
	@tools/install.sh differential
	PGBOUNCER=$$(tools/pgbouncer-build.sh) cargo test --locked -p end-to-end --test differential --test pgbouncer_handover --test pgbouncer_tools -- --ignored --nocapture

compose: ## docker-compose.yml with the primary killed; makes its base image with debootstrap (three minutes)
	@tools/install.sh compose
	cargo build --release --locked --bin pgsteady
	tests/compose.sh

fuzz: ## Half a minute of fuzzing for each parser (installs cargo-fuzz)
	@command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz@0.13.2
	for target in $$(ls fuzz/fuzz_targets | sed 's/\.rs$$//'); do \
		cargo fuzz run -s none $$target -- -max_total_time=30 || exit 1; \
	done

clean: ## Remove everything that was built or downloaded
	cargo clean
	rm -rf .cache
