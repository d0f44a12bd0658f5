#!/usr/bin/env bash
# Installs what is missing on Debian or Ubuntu, and says what. Arguments: the sets wanted (default: build).
#   build  clang, libelf, a Rust toolchain
#   demo   sockperf, redis, iproute2, iptables
#   test   what the tests need besides
#   deploy what the image and the manifests are made with, and what tests/deploy needs
#   lint   clang-format, shellcheck, gofmt
# When nothing is missing it changes nothing and needs neither root nor a network.
#
# Environment: SHARED_SOCKET_NO_RUSTUP=1  never download rustup; only say how to get a toolchain
set -euo pipefail

rust_needed=1.88

say() { printf 'deps: %s\n' "$*"; }
die() {
	printf 'deps: %s\n' "$*" >&2
	exit 3
}

[ $# -gt 0 ] || set -- build
sets=("$@")

packages=()
rust=
cpython_tests=
for set in "$@"; do
	case $set in
	build)
		packages+=(clang llvm libelf-dev zlib1g-dev pkg-config gcc libc6-dev make)
		rust=yes
		;;
	demo) packages+=(iproute2 iptables redis-server redis-tools sockperf util-linux jq procps) ;;
	test)
		packages+=(iproute2 iptables redis-server redis-tools sockperf util-linux jq procps
			python3 python3-pytest curl openssl rsync nginx-light wrk haproxy postgresql golang-go tcl qemu-system-x86
			busybox-static e2fsprogs containerd runc containernetworking-plugins protobuf-compiler python3-protobuf
			python3-grpcio podman crun conmon prometheus tmux chromium graphviz tshark)
		cpython_tests=yes
		;;
	deploy) packages+=(buildah golang-go golang-github-masterminds-sprig-dev golang-k8s-sigs-yaml-dev python3 python3-pytest
		python3-yaml python3-jsonschema containerd runc) ;;
	lint) packages+=(clang-format shellcheck golang-go) ;;
	*) die "unknown set '$set': build, demo, test, deploy and lint are known" ;;
	esac
done

have_apt() { command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; }

# ---- packages -------------------------------------------------------------------------------------------------------

apt_install() {
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
}

# Installing a server must not start it on this machine, now or at the next boot: for as long as apt runs,
# policy-rc.d (if this machine has none of its own) says no to every service.
policy=/usr/sbin/policy-rc.d
made_policy=
drop_policy() {
	[ -z "$made_policy" ] || rm -f "$policy"
	made_policy=
}
trap drop_policy EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

install_missing() { # package...
	local package missing=()
	for package in "$@"; do
		# shellcheck disable=SC2016 # dpkg-query's own variable
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] && continue
		# What is there under the same name, wherever it came from, is good enough.
		case $package in
		clang | clang-format | shellcheck | make | jq | sockperf | gcc | pkg-config | redis-server | containerd | runc | \
			podman | crun | conmon)
			command -v "$package" >/dev/null && continue
			;;
		protobuf-compiler)
			command -v protoc >/dev/null && continue
			;;
		esac
		missing+=("$package")
	done
	[ "${#missing[@]}" -gt 0 ] || return 0

	say "installing: ${missing[*]}"
	[ "$(id -u)" -eq 0 ] || die "needs root for that: run 'sudo $0 ${sets[*]}', or install them yourself"
	if [ ! -e "$policy" ]; then
		printf '#!/bin/sh\n# Put here for a moment by Shared Socket: start no service.\nexit 101\n' >"$policy"
		made_policy=yes
		chmod 755 "$policy"
	fi
	if ! apt_install "${missing[@]}"; then
		say "that failed; once more after apt-get update"
		apt-get update -q
		apt_install "${missing[@]}" ||
			die "apt could not install: ${missing[*]} (on Ubuntu, sockperf and redis are in 'universe')"
	fi
	drop_policy
	local service
	for service in redis-server nginx haproxy postgresql rsync containerd podman prometheus; do
		case " ${missing[*]} " in
		*" $service"[\ -]*)
			if [ -d /run/systemd/system ]; then
				systemctl disable --quiet "$service" 2>/dev/null || true
				if [ "$service" = podman ]; then
					# its socket would start it, its timer pulls images, and the other starts containers
					systemctl disable --quiet podman.socket podman-auto-update.timer podman-auto-update podman-restart \
						2>/dev/null || true
				fi
			fi
			say "$service is installed; its service was neither started nor enabled"
			;;
		esac
	done
}

mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)

if have_apt; then
	install_missing "${packages[@]}"
	# CPython's own tests, those of the interpreter that runs them.
	if [ -n "$cpython_tests" ]; then
		install_missing "lib$(/usr/bin/python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])')-testsuite"
	fi
else
	for tool in clang pkg-config gcc make; do
		command -v "$tool" >/dev/null || die "no apt here and '$tool' is missing; wanted, by Debian's names: ${packages[*]}"
	done
	say "no apt here, so nothing is installed; wanted, by Debian's names: ${packages[*]}"
fi

# ---- Rust -----------------------------------------------------------------------------------------------------------

at_least() { # version, wanted
	[ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}
cargo_version() { cargo --version 2>/dev/null | awk '{ print $2; exit }'; }

if [ -n "$rust" ]; then
	[ -d "${CARGO_HOME:-$HOME/.cargo}/bin" ] && PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
	version=$(cargo_version || true)
	if [ -n "$version" ] && at_least "$version" "$rust_needed"; then
		exit 0
	fi
	if [ -n "$version" ]; then
		say "cargo $version is here, but $rust_needed or newer is needed"
	else
		say "cargo is not here; $rust_needed or newer is needed"
	fi

	candidate() { apt-cache policy "$1" 2>/dev/null | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }'; }
	how="get it from https://rustup.rs, then run this again"
	if have_apt && [ "$(id -u)" -eq 0 ] && [ -z "$(candidate cargo)" ]; then apt-get update -q || true; fi
	if command -v rustup >/dev/null; then
		say "updating the toolchain with rustup"
		rustup toolchain install stable --profile minimal --component rustfmt --component clippy
		rustup default stable
	elif have_apt && [ "$(id -u)" -eq 0 ] && at_least "$(candidate cargo | sed 's/[+~-].*//')" "$rust_needed"; then
		say "installing: cargo rustc rustfmt rust-clippy"
		apt_install cargo rustc rustfmt rust-clippy
	elif have_apt && [ "$(id -u)" -eq 0 ] && [ -n "$(candidate rustup)" ]; then
		say "installing: rustup, and with it the stable toolchain"
		apt_install rustup
		rustup toolchain install stable --profile minimal --component rustfmt --component clippy
		rustup default stable
	elif [ -n "${SHARED_SOCKET_NO_RUSTUP:-}" ]; then
		die "$how"
	else
		# No package of this release is new enough (Debian 12: cargo 0.66, no rustup): the Rust project's installer.
		say "installing: the stable Rust toolchain into ${CARGO_HOME:-$HOME/.cargo}, with rustup from https://rustup.rs"
		if ! command -v curl >/dev/null; then
			if ! have_apt || [ "$(id -u)" -ne 0 ]; then die "curl is missing; $how"; fi
			install_missing curl ca-certificates
		fi
		installer=$(mktemp)
		if ! curl --proto '=https' --tlsv1.2 -sSfL https://sh.rustup.rs -o "$installer"; then
			rm -f "$installer"
			die "could not download rustup; $how"
		fi
		sh "$installer" -y --no-modify-path --profile minimal --component rustfmt --component clippy ||
			die "rustup's installer failed; $how"
		rm -f "$installer"
		PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
	fi
	hash -r
	version=$(cargo_version || true)
	if [ -z "$version" ] || ! at_least "$version" "$rust_needed"; then
		die "still no cargo $rust_needed or newer; $how"
	fi
	say "cargo $version"
fi
