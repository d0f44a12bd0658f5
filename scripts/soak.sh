#!/usr/bin/env bash
# An hour of connections that come and go, a million of them or more, with the kernel's memory watched: as root.
#   scripts/soak.sh [SECONDS [CONNECTIONS]]      default 3600 and 1,000,000; what comes first ends it
# ELIGIBILITY=all runs it with every pair accelerated; RATE=290 makes so many connections a second at most, beside other work
# (whose memory counts, too). The last lines say how memory grew; a slope fails.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d "${CARGO_HOME:-$HOME/.cargo}/bin" ] && PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH

seconds=${1:-3600}
connections=${2:-1000000}
cargo build --release --workspace --locked
exec nice -n 10 target/release/shared-socket-fuzz --soak --seconds "$seconds" --count "$connections" \
	--eligibility "${ELIGIBILITY:-safe}" ${RATE:+--rate "$RATE"}
