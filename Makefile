# `make test` is what CI runs. One profile (release) for tests and for use, so that dependencies are built once.

CARGO ?= cargo

.PHONY: setup build demo test fmt clippy

setup:
	./scripts/setup.sh

build: setup
	$(CARGO) build --release

demo: build
	./scripts/demo.sh

test: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets --quiet -- -D warnings
	$(CARGO) test --release --workspace --quiet
	./scripts/readme_commands.sh
	./scripts/eval_tiny.sh

fmt:
	$(CARGO) fmt --all

clippy:
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
