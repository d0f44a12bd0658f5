# `make demo` shows what it does, `make test` proves it. Both install what is missing (Debian, Ubuntu; as root).
.DEFAULT_GOAL := build

PREFIX      ?= /usr/local
DESTDIR     ?=
BINDIR      ?= $(PREFIX)/bin
MANDIR      ?= $(PREFIX)/share/man
BASHCOMPDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHCOMPDIR  ?= $(PREFIX)/share/zsh/site-functions
FISHCOMPDIR ?= $(PREFIX)/share/fish/vendor_completions.d
INSTALL     ?= install

# A toolchain that was installed a moment ago is not in this shell's PATH yet.
CARGO_HOME ?= $(HOME)/.cargo
PATH       := $(CARGO_HOME)/bin:$(PATH)
export PATH

BIN := target/release/shared-socket

.PHONY: help build demo test test-vm lint bench format man completions static image deb manifests install uninstall clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build target/release/shared-socket
	@scripts/install-deps.sh build
	cargo build --release --workspace --locked

demo: ## two pods, real sockperf and redis, before and after (root)
	@scripts/install-deps.sh build demo
	cargo build --release --workspace --locked
	@scripts/demo.sh

test: ## every test, one summary line (root)
	@scripts/install-deps.sh build demo test deploy
	@scripts/test.sh

test-vm: ## the kernel matrix alone: the core tests in QEMU on Debian's kernels (root)
	@scripts/install-deps.sh build test
	cargo build --release --workspace --locked
	@/usr/bin/python3 tests/vm/matrix.py $(VM_ARGS)

lint: ## formatting, clippy, shellcheck, cargo-deny
	@scripts/install-deps.sh build lint
	@scripts/lint.sh

format: ## rustfmt and clang-format, in place
	cargo fmt --all
	clang-format -i $$(find bpf bench crates/datapath/probe -name '*.[ch]' ! -name 'vmlinux*.h')

bench: build ## the benchmark matrix (root); BENCH_ARGS narrows it
	$(BIN) bench $(BENCH_ARGS)

man: build ## man pages into man/
	$(BIN) man --out man/

completions: build ## shell completions into target/completions/
	mkdir -p target/completions
	$(BIN) completions bash > target/completions/shared-socket.bash
	$(BIN) completions zsh > target/completions/_shared-socket
	$(BIN) completions fish > target/completions/shared-socket.fish

static: ## target/static/shared-socket, which needs no library of the machine
	@scripts/install-deps.sh build
	@deploy/build-static.sh

image: static ## target/image/shared-socket.tar, the container image as an OCI archive
	@scripts/install-deps.sh deploy
	@deploy/build-image.sh

deb: static ## target/deb/shared-socket_VERSION_ARCH.deb
	@deploy/build-deb.sh

manifests: ## deploy/manifests/shared-socket.yaml, from the Helm chart
	@scripts/install-deps.sh deploy
	@deploy/render.sh --manifests

# Builds only what is not there: `make build && sudo make install` compiles nothing as root.
install: ## binary, man pages, completions; PREFIX, DESTDIR
	@test -x $(BIN) || $(MAKE) build
	rm -rf target/install && mkdir -p target/install/man
	$(BIN) man --out target/install/man
	$(BIN) completions bash > target/install/shared-socket.bash
	$(BIN) completions zsh > target/install/_shared-socket
	$(BIN) completions fish > target/install/shared-socket.fish
	$(INSTALL) -D -m 755 $(BIN) $(DESTDIR)$(BINDIR)/shared-socket
	@set -e; for page in target/install/man/*.[1-8]; do \
		dir=$(DESTDIR)$(MANDIR)/man$${page##*.}; \
		echo "$(INSTALL) -D -m 644 $$page $$dir/$${page##*/}"; \
		$(INSTALL) -D -m 644 "$$page" "$$dir/$${page##*/}"; \
	done
	$(INSTALL) -D -m 644 target/install/shared-socket.bash $(DESTDIR)$(BASHCOMPDIR)/shared-socket
	$(INSTALL) -D -m 644 target/install/_shared-socket $(DESTDIR)$(ZSHCOMPDIR)/_shared-socket
	$(INSTALL) -D -m 644 target/install/shared-socket.fish $(DESTDIR)$(FISHCOMPDIR)/shared-socket.fish
	rm -rf target/install

uninstall: ## what `make install` put there
	rm -f $(DESTDIR)$(BINDIR)/shared-socket $(DESTDIR)$(MANDIR)/man?/shared-socket.[1-8] \
		$(DESTDIR)$(MANDIR)/man?/shared-socket-*.[1-8] $(DESTDIR)$(BASHCOMPDIR)/shared-socket \
		$(DESTDIR)$(ZSHCOMPDIR)/_shared-socket $(DESTDIR)$(FISHCOMPDIR)/shared-socket.fish

clean: ## remove what was built
	cargo clean
