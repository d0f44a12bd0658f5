#!/usr/bin/env bash
# Every check that runs no test. All of them run, whatever the first ones say; the exit status says how many failed.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d "${CARGO_HOME:-$HOME/.cargo}/bin" ] && PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH

failed=0
check() { # name, command...
	local name=$1
	shift
	echo "== $name"
	if ! "$@"; then
		echo "== $name: FAILED" >&2
		failed=$((failed + 1))
	fi
}

# vmlinux.h comes from the kernel and keeps its own looks.
# shellcheck disable=SC2317 # called through check
c_format() {
	local files
	mapfile -t files < <(find bpf bench crates/datapath/probe -name '*.[ch]' ! -name 'vmlinux*.h' 2>/dev/null | sort)
	[ "${#files[@]}" -gt 0 ] || return 0
	clang-format --dry-run -Werror "${files[@]}"
}

# shellcheck disable=SC2317 # called through check
go_format() {
	local different
	different=$(gofmt -l deploy/tools)
	[ -z "$different" ] || {
		echo "not formatted: $different"
		return 1
	}
}

# shellcheck disable=SC2317 # called through check
deny() {
	local log status=0
	cargo deny --log-level error check licenses bans sources || return 1
	log=$(mktemp)
	timeout 120 cargo deny check advisories >"$log" 2>&1 || status=$?
	if [ "$status" -eq 0 ]; then
		echo "advisories ok"
	elif [ "$status" -eq 124 ] || grep -q 'failed to fetch advisory database' "$log"; then
		echo "advisories NOT checked: the advisory database cannot be fetched from here"
		status=0
	else
		cat "$log"
	fi
	rm -f "$log"
	return "$status"
}

check rustfmt cargo fmt --all --check
check clippy cargo clippy --workspace --all-targets --locked -- -D warnings
check clang-format c_format
check "BPF for arm64" scripts/check-arm64.sh
check shellcheck shellcheck .ci/run scripts/*.sh deploy/*.sh deploy/kubectl-shared_socket deploy/debian/p*
check gofmt go_format
check cargo-deny deny

exit "$failed"
