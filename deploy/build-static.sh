#!/usr/bin/env bash
# Builds target/static/shared-socket, which needs no library of the machine it runs on: the image is FROM scratch, and the
# Debian package installs on any release. Statically linked against glibc, with the distribution's libelf.a and libz.a.
#
# glibc and not musl: libelf needs argp, fts and obstack, which musl lacks, and no distribution ships a libelf for it.
#
# Environment: CARGO_TARGET_DIR  where cargo builds (default: target/static-build, so that no other build is disturbed)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d "${CARGO_HOME:-$HOME/.cargo}/bin" ] && PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH

die() {
	printf 'build-static: %s\n' "$*" >&2
	exit 1
}

build=${CARGO_TARGET_DIR:-target/static-build}
target=$(rustc -vV | awk '$1 == "host:" { print $2 }')
case $target in
*-linux-gnu) ;;
*) die "the Rust toolchain is for '$target'; a static build is known for *-linux-gnu only" ;;
esac

libraries=$(pkg-config --variable=libdir libelf)
for library in libelf.a libz.a; do
	[ -e "$libraries/$library" ] || die "$libraries/$library is missing (Debian: libelf-dev, zlib1g-dev)"
done
# A newer libelf is itself linked with zstd, and more to come: what its .pc file says besides the two named above.
flags=(-C target-feature=+crt-static)
for word in $(pkg-config --static --libs-only-l libelf); do
	case $word in
	-lelf | -lz) ;;
	*) flags+=(-C "link-arg=$word") ;;
	esac
done

# Only the last link and what has libelf in it differ from `make build`: what that has built is where this begins, when there
# is nothing yet. Cargo itself finds out what of it fits. Under cargo's own lock, so that it is not copied half written.
if [ ! -e "$build/release" ] && [ -e target/release/.cargo-lock ]; then
	mkdir -p "$build/.new"
	flock target/release/.cargo-lock cp -a target/release/{.fingerprint,build,deps} "$build/.new/"
	mv "$build/.new" "$build/release"
fi

# The flags are for the program alone: build scripts and proc macros are shared objects and cannot be static.
LIBBPF_SYS_LIBRARY_PATH="$libraries" cargo rustc --release --locked --target-dir "$build" \
	-p shared-socket --bin shared-socket --features static -- "${flags[@]}"

mkdir -p target/static
# Line tables are for backtraces on a developer's machine; without them the file is a fraction as large.
"${STRIP:-strip}" --strip-debug -o target/static/.shared-socket.new "$build/release/shared-socket"
mv target/static/.shared-socket.new target/static/shared-socket

# A dynamic section may be there (static-pie relocates itself); a program interpreter or a needed library may not.
headers=$(LC_ALL=C readelf --wide --program-headers --dynamic target/static/shared-socket)
case $headers in
*INTERP* | *'(NEEDED)'*) die "target/static/shared-socket is not static: $headers" ;;
esac
echo "target/static/shared-socket: $(stat -c %s target/static/shared-socket) bytes, static"
