# Every target installs what is missing (hack/setup.sh) and needs root or sudo; nothing is left
# behind on the machine: nodes and pods are namespaces that end with the program.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin:$(HOME)/.cargo/bin

# Programs that make namespaces run as root; cargo itself stays who you are.
ifneq ($(shell id -u),0)
HOST := $(shell rustc -vV | sed -n 's/^host: //p' | tr a-z- A-Z_)
export CARGO_TARGET_$(HOST)_RUNNER := sudo --preserve-env
endif

.PHONY: help setup demo test lab fleet lint bench image

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

setup: ## install what is missing
	@hack/setup.sh

demo: setup ## a cluster in a box: Chainsmith on simulated nodes, traffic through Services, each step shown
	@cargo build --quiet --bin chainsmith
	@cargo run --quiet --example demo

test: setup ## all tests: units, recorded cases, properties, real packets on real iptables
	cargo test --doc
	@# Real clusters mostly wait: two at a time on each core.
	RUST_TEST_THREADS=$$((2 * $$(nproc))) cargo test --no-fail-fast --lib --bins --tests

lab: setup ## every fault with full counts, and a table of what came of it (about 20 minutes)
	@cargo build --quiet --bin chainsmith
	@cargo run --quiet --example lab -- $(LAB)

fleet: ## what 200 nodes ask of an API server, counted (FLEET="--nodes 50 1000x10": smaller; 10 minutes in full)
	cargo run --release --quiet --example fleet -- $(FLEET)

lint: ## formatting, clippy, documentation; warnings are errors
	@hack/setup.sh lint
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps

bench: setup ## speed of the pipeline, then the agent at size on real iptables (BENCH="--backend nft 5000x10": a part)
	cargo bench
	cargo bench --bench scale -- $(BENCH)

image: setup ## the Dockerfile's last stage in a folder, and Chainsmith in it on both back-ends; no container engine
	@cargo build --quiet --release --bin chainsmith
	@hack/image-check.sh target/release/chainsmith
