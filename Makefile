# Every target that needs `setup` installs missing packages (hack/setup.sh), which requires root or sudo.
# Nothing else stays on the machine: nodes and pods are namespaces that end with the program.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin:$(HOME)/.cargo/bin

# Programs that create namespaces run as root; cargo itself runs as the current user.
ifneq ($(shell id -u),0)
HOST := $(shell rustc -vV | sed -n 's/^host: //p' | tr a-z- A-Z_)
export CARGO_TARGET_$(HOST)_RUNNER := sudo --preserve-env
endif

.PHONY: help setup demo test lab fleet lint bench image

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

setup: ## install missing packages
	@hack/setup.sh

demo: setup ## a simulated cluster: Chainsmith on its nodes, traffic through Services, step by step
	@cargo build --quiet --bin chainsmith
	@cargo run --quiet --example demo

test: setup ## all tests: unit tests, recorded cases, properties, real packets through real iptables
	cargo test --doc
	@# Tests with simulated clusters mostly wait: two at a time for each core.
	RUST_TEST_THREADS=$$((2 * $$(nproc))) cargo test --no-fail-fast --lib --bins --tests

lab: setup ## every fault with full counts, and a table of the results (about 20 minutes)
	@cargo build --quiet --bin chainsmith
	@cargo run --quiet --example lab -- $(LAB)
	@# Counts of connections against 10 000 of them, during 200 changes of endpoints.
	@CHAINSMITH_FULL_COUNTS=1 cargo test --quiet --test e2e connections_are_counted -- --nocapture --test-threads 1 | grep ' lost '

fleet: ## count the requests of 200 nodes to an API server (FLEET="--nodes 50 1000x10": smaller; 10 minutes in full)
	cargo run --release --quiet --example fleet -- $(FLEET)

lint: ## check formatting, clippy and documentation; warnings are errors
	@hack/setup.sh lint
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps

bench: setup ## benchmarks: the pipeline, then the agent at size on real iptables (BENCH="--backend nft 5000x10": a part)
	cargo bench
	cargo bench --bench scale -- $(BENCH)

image: setup ## run the Dockerfile's last stage in a folder, and Chainsmith in it with both back-ends; no container engine needed
	@cargo build --quiet --release --bin chainsmith
	@hack/image-check.sh target/release/chainsmith
