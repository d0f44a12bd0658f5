#!/usr/bin/env bash
# The demo: two pods of network namespaces with a service address in front of one, real sockperf and redis between
# them, once over TCP and once with Shared Socket attached. Prints one comparison table, writes target/demo.json and
# removes everything it made, on Ctrl-C and on failure too. Run it with `make demo`.
#
# Environment: SHARED_SOCKET  the binary (default: target/release/shared-socket of this checkout)
#              ROUNDS         rounds per workload, the table shows medians (default 3)
#              SECONDS_EACH   seconds per sockperf run (default 3)
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=${SHARED_SOCKET:-$repo/target/release/shared-socket}
rounds=${ROUNDS:-3}
seconds=${SECONDS_EACH:-3}

id=$$
router=ss-demo-$id-router
ns_client=ss-demo-$id-client
ns_server=ss-demo-$id-server
gateway=10.213.0.1
client_ip=10.213.0.2
server_ip=10.213.0.3
service_ip=10.214.0.10
pin_dir=/sys/fs/bpf/shared-socket-demo-$id

work=
cgroup=
mounted_bpffs=
attached=
children=()

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
note() { printf '  %s\n' "$*"; }
die() {
	printf 'demo: %s\n' "$*" >&2
	exit 1
}
# die when the machine cannot run this at all
cannot() {
	printf 'demo: %s\n' "$*" >&2
	exit 3
}

forget() {
	local pid kept=()
	for pid in "${children[@]}"; do
		[ "$pid" = "$1" ] || kept+=("$pid")
	done
	children=("${kept[@]+"${kept[@]}"}")
}

# Ends our own children, by pid, and waits for them.
end_children() {
	local pid
	for pid in "${children[@]+"${children[@]}"}"; do
		kill -TERM "$pid" 2>/dev/null || true
	done
	local tries
	for pid in "${children[@]+"${children[@]}"}"; do
		for tries in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
			kill -0 "$pid" 2>/dev/null || break
			sleep 0.1
		done
		: "$tries"
		kill -KILL "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
	done
	children=()
}

cleanup() {
	local status=$?
	trap '' INT TERM HUP
	trap - EXIT
	set +e
	end_children
	if [ -n "$attached" ] && [ -e "$pin_dir" ]; then
		timeout -k 1 20 "$bin" --pin-dir "$pin_dir" detach --all --timeout 5 >"$work/detach.log" 2>&1 ||
			sed 's/^/demo: detach: /' "$work/detach.log" >&2
	fi
	# Nothing of ours is running any more; what a failed detach left pinned must not stay behind.
	[ -e "$pin_dir" ] && rm -rf "$pin_dir"
	local ns
	for ns in "$ns_client" "$ns_server" "$router"; do
		[ -e "/run/netns/$ns" ] && ip netns del "$ns"
	done
	if [ -n "$cgroup" ] && [ -d "$cgroup" ]; then
		local tries
		for tries in 1 2 3 4 5 6 7 8 9 10; do
			rmdir "$cgroup/client" "$cgroup/server" 2>/dev/null
			rmdir "$cgroup" 2>/dev/null && break
			sleep 0.2
		done
		: "$tries"
		[ -d "$cgroup" ] && echo "demo: could not remove $cgroup" >&2
	fi
	# Unless somebody else has pinned something there meanwhile (the kernel itself keeps two files *.debug in it).
	if [ -n "$mounted_bpffs" ] && [ -z "$(find /sys/fs/bpf -mindepth 1 ! -name '*.debug' -print -quit)" ]; then
		umount /sys/fs/bpf
	fi
	[ -n "$work" ] && rm -rf "$work"
	exit "$status"
}

# ---- what has to be there -------------------------------------------------------------------------------------------

[ "$(id -u)" -eq 0 ] || cannot "needs root, to make network namespaces and cgroups and to load BPF: run it with sudo"
for tool in ip iptables sockperf redis-server redis-cli redis-benchmark taskset timeout jq; do
	command -v "$tool" >/dev/null || cannot "$tool is not installed: run scripts/install-deps.sh demo"
done
[ -x "$bin" ] || cannot "$bin does not exist: run make build"

cgroup2=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
[ -n "$cgroup2" ] || cannot "no cgroup v2 hierarchy in /proc/mounts: mount one with 'mount -t cgroup2 none /sys/fs/cgroup/unified'"

trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

work=$(mktemp -d)

# Two cores when there are two: the server on the first, the client on the second.
mapfile -t cpus < <(
	awk '/^Cpus_allowed_list/ { print $2 }' /proc/self/status | tr ',' '\n' |
		while IFS=- read -r first last; do seq "$first" "${last:-$first}"; done
)
cpu_server=${cpus[0]}
cpu_client=${cpus[1]:-${cpus[0]}}

# ---- two pods -------------------------------------------------------------------------------------------------------

say "Two pods and a service address"

if ! awk '$2 == "/sys/fs/bpf" && $3 == "bpf" { found = 1 } END { exit !found }' /proc/mounts; then
	mount -t bpf bpf /sys/fs/bpf || cannot "no bpffs at /sys/fs/bpf and it cannot be mounted"
	mounted_bpffs=yes
	note "mounted a bpffs at /sys/fs/bpf (unmounted again at the end)"
fi

cgroup=$cgroup2/shared-socket-demo-$id
mkdir "$cgroup" "$cgroup/client" "$cgroup/server" || cannot "cannot make cgroups below $cgroup2"

ip netns add "$router"
ip -n "$router" link set lo up
ip -n "$router" link add br0 type bridge
ip -n "$router" addr add "$gateway/24" dev br0
ip -n "$router" link set br0 up
ip netns exec "$router" sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward
	echo 0 > /proc/sys/net/ipv4/conf/all/send_redirects
	echo 0 > /proc/sys/net/ipv4/conf/br0/send_redirects'

make_pod() { # namespace, address, name of the router's end
	ip netns add "$1"
	ip -n "$router" link add "$3" type veth peer name eth0 netns "$1"
	ip -n "$router" link set "$3" master br0 up
	ip -n "$1" link set lo up
	ip -n "$1" addr add "$2/24" dev eth0
	ip -n "$1" link set eth0 up
	ip -n "$1" route add default via "$gateway"
}
make_pod "$ns_client" "$client_ip" to-client
make_pod "$ns_server" "$server_ip" to-server

# A service address as kube-proxy makes one: the client never learns the address of the pod behind it.
router_iptables() { ip netns exec "$router" iptables -w 5 -t nat "$@"; }
if ! { router_iptables -A PREROUTING -d "$service_ip" -p tcp -j DNAT --to-destination "$server_ip" &&
	router_iptables -A POSTROUTING -s "$client_ip" -d "$server_ip" -j MASQUERADE; }; then
	cannot "iptables cannot make NAT rules here (is the nat table of nf_tables or iptables in this kernel?)"
fi

note "client pod   $client_ip  cpu $cpu_client  cgroup ${cgroup#"$cgroup2"}/client"
note "server pod   $server_ip  cpu $cpu_server  cgroup ${cgroup#"$cgroup2"}/server"
note "service      $service_ip -> $server_ip (DNAT and masquerade, in the router's namespace)"

# Runs a command in a pod, in the background; sets $child.
in_pod() { # client|server, output file, command...
	local pod=$1 out=$2 ns cpu
	shift 2
	if [ "$pod" = client ]; then ns=$ns_client cpu=$cpu_client; else ns=$ns_server cpu=$cpu_server; fi
	(
		trap - EXIT INT TERM HUP
		echo "$BASHPID" >"$cgroup/$pod/cgroup.procs"
		exec ip netns exec "$ns" taskset -c "$cpu" "$@"
	) >"$out" 2>&1 </dev/null &
	child=$!
	children+=("$child")
}

# The same, waits for it (a wait that a signal can interrupt) and says what went wrong.
in_client() { # output file, command...
	local status=0
	in_pod client "$@"
	wait "$child" || status=$?
	forget "$child"
	if [ "$status" -ne 0 ]; then
		tail -n 15 "$1" >&2
		die "'${*:2}' failed with status $status"
	fi
}

await() { # seconds, what, command...
	local deadline=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		[ "$SECONDS" -lt "$deadline" ] || die "$what did not come up"
		sleep 0.1
	done
}

in_pod server "$work/redis.log" redis-server --bind 0.0.0.0 --port 6379 --save '' --appendonly no \
	--protected-mode no --daemonize no --dir "$work"
in_pod server "$work/sockperf.log" sockperf server --tcp -i "$server_ip" -p 11111
await 10 "redis-server" ip netns exec "$ns_client" redis-cli -h "$service_ip" ping
listening() { [ -n "$(ip netns exec "$ns_server" ss -Hltn "sport = :$1")" ]; }
await 10 "sockperf server" listening 11111
note "started      redis-server and sockperf server; both run to the end, nothing is restarted"

# ---- the workloads --------------------------------------------------------------------------------------------------

plain() { sed 's/\x1b\[[0-9;]*m//g' "$1"; }
record() { # path, workload, metric, unit, value
	[ -n "$5" ] || die "no figure for '$2, $3' in the output"
	jq -cn --arg path "$1" --arg workload "$2" --arg metric "$3" --arg unit "$4" --argjson value "$5" \
		'$ARGS.named' >>"$work/samples"
}

percentile() { plain "$1" | awk -v want="$2" '$2 == "--->" && $3 == "percentile" && $4 + 0 == want { print $NF }'; }

sockperf_pingpong() { # path
	local out=$work/pp
	in_client "$out" timeout -k 2 $((seconds + 10)) \
		sockperf ping-pong --tcp -i "$server_ip" -p 11111 -m 64 -t "$seconds" --full-rtt
	record "$1" "sockperf ping-pong 64 B" "round trip p50" us "$(percentile "$out" 50)"
	record "$1" "sockperf ping-pong 64 B" "round trip p99" us "$(percentile "$out" 99)"
}

sockperf_throughput() { # path
	local out=$work/tp
	in_client "$out" timeout -k 2 $((seconds + 10)) \
		sockperf throughput --tcp -i "$server_ip" -p 11111 -m 1024 -t "$seconds"
	record "$1" "sockperf throughput 1 KiB" "messages" 1/s \
		"$(plain "$out" | sed -n 's/.*Message Rate is \([0-9.]*\) .*/\1/p')"
}

redis_get() { # path, connections, requests
	local out=$work/redis
	in_client "$out" timeout -k 2 25 \
		redis-benchmark -h "$service_ip" -p 6379 -t get -c "$2" -n "$3" --csv
	# "test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
	local rps p99
	IFS=, read -r _ rps _ _ _ _ p99 _ < <(grep '^"GET"' "$out" | tr -d '"')
	record "$1" "redis GET -c $2 (service)" "requests" 1/s "$rps"
	record "$1" "redis GET -c $2 (service)" "latency p99" us "$(awk -v ms="$p99" 'BEGIN { print ms * 1000 }')"
}

measure() { # tcp|fast
	local round
	for round in $(seq "$rounds"); do
		note "round $round of $rounds: sockperf ping-pong, sockperf throughput, redis -c 1, redis -c 50"
		sockperf_pingpong "$1"
		sockperf_throughput "$1"
		redis_get "$1" 1 30000
		redis_get "$1" 50 150000
	done
}

shared_socket() { timeout -k 2 30 "$bin" --pin-dir "$pin_dir" "$@"; }
fast_messages() { shared_socket status -o json | jq '.totals.fast_messages'; }

say "Before: TCP"
measure tcp

say "shared-socket attach"
note "\$ shared-socket attach --cgroup ${cgroup#"$cgroup2"/}/client --cgroup ${cgroup#"$cgroup2"/}/server --eligibility all"
note "sockperf uses blocking sockets, which only the owner of a workload can vouch for: hence --eligibility all"
attached=yes
shared_socket attach --cgroup "$cgroup/client" --cgroup "$cgroup/server" --eligibility all ||
	die "attach failed"
before=$(fast_messages)

say "While messages are flowing: shared-socket connections"
in_pod client "$work/live" timeout -k 2 20 sockperf ping-pong --tcp -i "$server_ip" -p 11111 -m 64 -t 4
live=$child
in_pod client "$work/live-redis" timeout -k 2 20 redis-benchmark -h "$service_ip" -t get -c 2 -n 1000000 -q
live_redis=$child
sleep 2.5
shared_socket connections || die "'shared-socket connections' failed"
kill -TERM "$live_redis" 2>/dev/null || true
wait "$live_redis" 2>/dev/null || true
forget "$live_redis"
wait "$live" || die "sockperf failed on the fast path: $(tail -n 3 "$work/live")"
forget "$live"

say "After: the fast path"
measure fast

say "shared-socket status"
shared_socket status || die "'shared-socket status' failed"
after=$(fast_messages)
case $before$after in
*[!0-9]* | '') die "'shared-socket status -o json' has no totals.fast_messages" ;;
esac
grown=$((after - before))

say "shared-socket detach --all"
shared_socket detach --all --timeout 10 || die "detach failed"
attached=
[ "$(ip netns exec "$ns_client" timeout 5 redis-cli -h "$service_ip" ping)" = PONG ] ||
	die "redis does not answer after detach"
note "redis still answers, over TCP again"

# ---- the result -----------------------------------------------------------------------------------------------------

mkdir -p "$repo/target"
jq -s '
	def median: sort | if length % 2 == 1 then .[length / 2 | floor] else (.[length / 2 - 1] + .[length / 2]) / 2 end;
	def round2: . * 100 | round / 100;
	. as $samples
	| (reduce .[] as $s ([]; if any(.[]; .workload == $s.workload and .metric == $s.metric) then .
		else . + [{workload: $s.workload, metric: $s.metric, unit: $s.unit}] end)) as $keys
	| {rows: [$keys[] as $k
		| ($samples | map(select(.workload == $k.workload and .metric == $k.metric))) as $mine
		| ($mine | map(select(.path == "tcp").value) | median) as $tcp
		| ($mine | map(select(.path == "fast").value) | median) as $fast
		| $k + {tcp: ($tcp | round2), fast: ($fast | round2),
			ratio: (if $tcp == 0 then null else ($fast / $tcp | round2) end)}]}
' "$work/samples" >"$work/demo.json"

say "TCP and the fast path, medians of $rounds rounds on $(uname -r)"
{
	printf 'workload\tmetric\tunit\ttcp\tfast\tratio\n'
	jq -r '.rows[] | [.workload, .metric, .unit, .tcp, .fast, .ratio] | @tsv' "$work/demo.json"
} | awk -F '\t' '
	NR == 1 { printf "  %-28s %-16s %-5s %12s %12s %9s\n", $1, $2, $3, $4, $5, "fast/tcp"; next }
	{ d = $3 == "us" ? 2 : 0; printf "  %-28s %-16s %-5s %12." d "f %12." d "f %8.2fx\n", $1, $2, $3, $4, $5, $6 }'
note ""
note "$grown messages took the fast path. us: less is better; 1/s: more is better."

[ "$grown" -gt 0 ] ||
	die "the fast path carried no message: the figures above compare TCP with TCP ('shared-socket status' shows the reasons)"

cp "$work/demo.json" "$repo/target/demo.json"
note "wrote target/demo.json"
