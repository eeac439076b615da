# make run     a mail system to play with: two mailbox servers, HAProxy, and Portico in front
# make test    the whole test suite; its clippy also checks the promised minimum Rust version
# make bench   load on every listener, memory of a session, CPU of a login (release build)
# make fuzz    each fuzz target for FUZZ_SECONDS (needs a nightly toolchain and cargo-fuzz)
# make image   the image of the Dockerfile, with docker or another ENGINE (podman, buildah)
# make check-image   builds it without a registry and without Docker, starts and uses it
# make deb, make rpm    a package with program, units, configuration, man pages (target/packages)
# make check-packages   builds both, installs, uses, upgrades and removes them in a Debian folder (needs root)

FUZZ_SECONDS ?= 600
ENGINE ?= docker

.PHONY: run test bench fuzz image check-image deb rpm check-packages

run:
	@scripts/install run
	@echo "run: cargo build (the first time takes a few minutes)"
	@cargo build --quiet --package proxy-app --package portico-tests --bins
	@cargo run --quiet --package portico-tests --bin stage

test:
	@scripts/install test
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo build --workspace
	cargo nextest run --workspace
	cargo test --workspace --doc
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items
	scripts/deny

bench:
	@scripts/install bench
	cargo build --release --package proxy-app
	cargo build --release --locked --manifest-path tests/benches/bare/Cargo.toml --target-dir target/bare
	cargo bench --package portico-tests --package route-cache

fuzz:
	@scripts/install build
	@scripts/fuzz $(FUZZ_SECONDS)

image:
	$(ENGINE) build --tag portico .

check-image:
	@scripts/install image
	@scripts/check-image

deb:
	@scripts/install deb
	@scripts/package deb

rpm:
	@scripts/install rpm
	@scripts/package rpm

check-packages:
	@scripts/install packages
	@scripts/check-packages
