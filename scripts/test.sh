#!/usr/bin/env bash
# Every test: cargo's, then the namespaced ones in tests/ (as root). The last line is the sum of both:
#   N passed, N failed[, N skipped]
# Arguments go to pytest (for example: scripts/test.sh -k half_close). FUZZ_SECONDS (60) is how long the fuzzer runs in all;
# FUZZ_SEED repeats a run of it.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d "${CARGO_HOME:-$HOME/.cargo}/bin" ] && PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

passed=0 failed=0 skipped=0

finish() {
	local line="$passed passed, $failed failed"
	[ "$skipped" -eq 0 ] || line="$line, $skipped skipped"
	echo "$line"
	[ "$failed" -eq 0 ] && exit 0
	exit 1
}

# What cannot be collected is known in a second, not after an hour.
if ! /usr/bin/python3 -m pytest -q --collect-only tests >"$work/collected" 2>&1; then
	tail -n 40 "$work/collected"
	failed=1
	finish
fi

# The tests drive the real binary: build it first, from a clean clone too.
if ! cargo build --release --workspace --locked; then
	echo "the build failed" >&2
	failed=1
	finish
fi

status=0
cargo test --workspace --release --locked --no-fail-fast 2>&1 | tee "$work/cargo.log" || status=$?
read -r passed failed skipped < <(awk '
	/^test result:/ {
		for (i = 1; i < NF; i++) {
			if ($(i + 1) == "passed;") passed += $i
			if ($(i + 1) == "failed;") failed += $i
			if ($(i + 1) == "ignored;") ignored += $i
		}
	}
	END { print passed + 0, failed + 0, ignored + 0 }' "$work/cargo.log")
# It failed without a failed test: it did not compile, or a test process died. That is a failure too.
if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
	failed=1
fi

# pytest, with its outcomes in a file of $work; its own output comes as it goes, or whole at the end of its lane.
run_pytest() { # name of the lane, arguments...
	local name=$1
	shift
	/usr/bin/python3 -m pytest -q -ra -p no:cacheprovider --durations=15 --junitxml "$work/$name.xml" "$@"
}

count_lane() { # name of the lane, its exit status
	local counts="0 0 0" py_passed py_failed py_skipped
	if [ -s "$work/$1.xml" ]; then
		counts=$(/usr/bin/python3 - "$work/$1.xml" <<-'PYTHON'
			import sys
			from xml.etree import ElementTree
			# A test that fails and whose teardown errs too is two entries with one name: count names, the worst wins.
			worst = {}
			for case in ElementTree.parse(sys.argv[1]).iter("testcase"):
			    kinds = {child.tag for child in case}
			    rank = 2 if kinds & {"failure", "error"} else 1 if "skipped" in kinds else 0
			    key = (case.get("classname"), case.get("name"))
			    worst[key] = max(rank, worst.get(key, 0))
			ranks = list(worst.values())
			print(ranks.count(0), ranks.count(2), ranks.count(1))
		PYTHON
		)
	fi
	read -r py_passed py_failed py_skipped <<<"$counts"
	if [ "$2" -ne 0 ] && [ "$py_failed" -eq 0 ]; then
		echo "pytest of lane $1 ended with status $2" >&2
		py_failed=1
	fi
	passed=$((passed + py_passed))
	failed=$((failed + py_failed))
	skipped=$((skipped + py_skipped))
}

if [ $# -gt 0 ]; then
	status=0
	run_pytest chosen tests "$@" || status=$?
	count_lane chosen "$status"
	finish
fi

# Two lanes side by side: an emulated machine takes one processor, and the other tests wait for something most of the time. When
# these are through, two machines run at a time. Last and alone comes what takes all there is (the fuzzer), or needs a machine
# that has a moment for it (`safe` adopts a busy connection when nothing is under way on it).
machines=(tests/vm)
alone=(tests/namespaced/test_adopt.py tests/namespaced/test_faults.py tests/namespaced/test_fuzz.py)
others=(tests)
for path in "${machines[@]}" "${alone[@]}"; do
	others+=(--ignore "$path")
done
export SHARED_SOCKET_VM_BESIDE=$work/beside
touch "$SHARED_SOCKET_VM_BESIDE"
run_pytest machines "${machines[@]}" >"$work/machines.log" 2>&1 &
lane=$!
trap '[ -z "$lane" ] || kill "$lane" || true; wait || true; rm -rf "$work"' EXIT
status=0
run_pytest others "${others[@]}" || status=$?
rm "$SHARED_SOCKET_VM_BESIDE"
count_lane others "$status"
status=0
wait "$lane" || status=$?
lane=
echo "== emulated machines"
cat "$work/machines.log"
count_lane machines "$status"
status=0
run_pytest alone "${alone[@]}" || status=$?
count_lane alone "$status"
finish
