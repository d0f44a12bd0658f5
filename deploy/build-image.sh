#!/usr/bin/env bash
# Builds the image of deploy/Dockerfile from target/static/shared-socket (`make static`) with buildah, without a network,
# and writes it to target/image/shared-socket.tar, an OCI archive:
#   ctr -n k8s.io images import target/image/shared-socket.tar
#   podman load -i target/image/shared-socket.tar
# The same binary gives the same image, bit for bit. Nothing is left in the machine's own image store.
#
# Environment: IMAGE  its name (default: that of the chart, with the version of Cargo.toml)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=$(awk -F '"' '/^version = / { print $2; exit }' Cargo.toml)
image=${IMAGE:-ghcr.io/shared-socket/shared-socket:$version}
[ -x target/static/shared-socket ] || {
	echo "build-image: target/static/shared-socket is missing; run 'make static' first" >&2
	exit 1
}

mkdir -p target/image
work=$(mktemp -d "$PWD/target/image/build.XXXXXX")
# buildah notes there what it has seen of registries, whatever store it was given.
cache=/var/lib/containers
[ ! -e "$cache" ] || cache=
trap 'rm -rf "$work" ${cache:+"$cache"}' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A context with the one file, so that no more is sent; a store of its own, and chroot isolation as there is nothing to run.
mkdir "$work/context"
cp target/static/shared-socket "$work/context/"
printf '{"default":[{"type":"insecureAcceptAnything"}]}\n' >"$work/policy.json"
# Without a policy of the machine (containers-common), or with one that forbids: this one is for this image alone.
store=(--root "$work/root" --runroot "$work/run" --storage-driver vfs)
buildah "${store[@]}" bud --quiet --isolation chroot --pull=never --timestamp 0 --format oci \
	--signature-policy "$work/policy.json" --build-arg "VERSION=$version" --tag "$image" \
	--file deploy/Dockerfile "$work/context" >/dev/null
buildah "${store[@]}" push --quiet --signature-policy "$work/policy.json" "$image" "oci:$work/layout:$image" >/dev/null
tar -C "$work/layout" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$work/image.tar" \
	oci-layout index.json blobs
mv "$work/image.tar" target/image/shared-socket.tar
echo "target/image/shared-socket.tar: $image, $(stat -c %s target/image/shared-socket.tar) bytes"
