#!/usr/bin/env bash
# Compiles the BPF programs, both builds of them, for arm64: what differs there is the layout of the registers. Rust for
# arm64 wants a toolchain of its own; the programs want clang only. After a build, for libbpf's headers.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
headers=$(find target/*/build/shared-socket-datapath-*/out -maxdepth 1 -name include -printf '%T@ %p\n' | sort -n | tail -n 1)
headers=${headers#* }
[ -n "$headers" ] || {
	echo "check-arm64: no headers of libbpf below target/: build first" >&2
	exit 1
}
object=$(mktemp)
trap 'rm -f "$object"' EXIT
for source in bpf/*.bpf.c crates/datapath/probe/*.bpf.c; do
	for build in '-mcpu=v3' '-mcpu=v2 -DOLD_KERNEL'; do
		# shellcheck disable=SC2086 # the flags of a build are words
		"${CLANG:-clang}" -g -O2 -target bpf -Wall -Wextra -Werror -Wno-unused-parameter $build -D__TARGET_ARCH_arm64 \
			-I "$headers" -isystem "/usr/include/$(gcc -print-multiarch)" -c "$source" -o "$object"
	done
done
