#!/usr/bin/env bash
# Makes target/deb/shared-socket_VERSION_ARCH.deb from target/static/shared-socket (`make static`), with dpkg-deb alone. The
# binary is static, so that the package depends on nothing and installs on any release of Debian and Ubuntu.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() {
	printf 'build-deb: %s\n' "$*" >&2
	exit 1
}

bin=target/static/shared-socket
[ -x "$bin" ] || die "$bin is missing; run 'make static' first"
command -v dpkg-deb >/dev/null || die "dpkg-deb is missing"

version=$(awk -F '"' '/^version = / { print $2; exit }' Cargo.toml)
built=$("$bin" --version)
[ "$built" = "shared-socket $version" ] || die "$bin is '$built', Cargo.toml says $version; run 'make static' again"
arch=$(dpkg --print-architecture)

# The same sources give the same package: every file has the time of the commit.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

mkdir -p target/deb
root=$(mktemp -d "$PWD/target/deb/build.XXXXXX")
trap 'rm -rf "$root"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
chmod 755 "$root"
umask 022

file() { # mode source target
	install -D -m "$1" "$2" "$root/$3"
}
file 755 "$bin" usr/bin/shared-socket
file 755 deploy/kubectl-shared_socket usr/bin/kubectl-shared_socket
file 644 deploy/debian/agent.yaml etc/shared-socket/agent.yaml
file 644 deploy/systemd/shared-socket.service usr/lib/systemd/system/shared-socket.service
"$bin" man --out "$root/man" >/dev/null
for page in "$root"/man/*.[1-8]; do
	gzip -9n "$page"
	file 644 "$page.gz" "usr/share/man/man${page##*.}/${page##*/}.gz"
done
rm -rf "$root/man"
for shell in bash/bash-completion/completions/shared-socket zsh/zsh/vendor-completions/_shared-socket \
	fish/fish/vendor_completions.d/shared-socket.fish; do
	mkdir -p "$root/usr/share/$(dirname "${shell#*/}")"
	"$bin" completions "${shell%%/*}" >"$root/usr/share/${shell#*/}"
done
doc=$root/usr/share/doc/shared-socket
mkdir -p "$doc"
awk 'FNR == NR { bsd = bsd (length($0) ? " " $0 : " .") "\n"; next } $0 == "@BSD@" { printf "%s", bsd; next } 1' \
	LICENSE-BSD-2-Clause deploy/debian/copyright >"$doc/copyright"
gzip -9nc CHANGELOG.md >"$doc/changelog.gz"

size=$(du -sk --apparent-size "$root" | cut -f 1)
mkdir "$root/DEBIAN"
sed -e "s/@VERSION@/$version/; s/@ARCH@/$arch/; s/@SIZE@/$size/" deploy/debian/control >"$root/DEBIAN/control"
install -m 644 deploy/debian/conffiles "$root/DEBIAN/conffiles"
install -m 755 deploy/debian/postinst deploy/debian/prerm deploy/debian/postrm "$root/DEBIAN/"
(cd "$root" && find etc usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
find "$root" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

package=target/deb/shared-socket_${version}_$arch.deb
dpkg-deb --root-owner-group -Zxz --build "$root" "$package" >/dev/null
echo "$package: $(stat -c %s "$package") bytes"
