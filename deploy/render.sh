#!/usr/bin/env bash
# Renders the chart: deploy/render.sh [options of deploy/tools/render]. With --manifests it writes
# deploy/manifests/shared-socket.yaml; with --manifests FILE that file.
#
# It builds the renderer from Debian's packages alone (golang-go, golang-github-masterminds-sprig-dev,
# golang-k8s-sigs-yaml-dev; scripts/install-deps.sh deploy), so that it works without a network.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
chart=deploy/helm/shared-socket
tool=target/deploy/render
source=deploy/tools/render/main.go

if [ ! -x "$tool" ] || [ "$source" -nt "$tool" ]; then
	mkdir -p target/deploy/gopath
	# GOPATH's first entry is where Go would write; it writes nothing there.
	GO111MODULE=off GOFLAGS='' GOPATH="$PWD/target/deploy/gopath:/usr/share/gocode" GOCACHE="$PWD/target/deploy/go-cache" \
		CGO_ENABLED=0 go build -o "$tool.$$" "$source"
	mv "$tool.$$" "$tool"
fi

if [ "${1-}" != --manifests ]; then
	exec "$tool" "$@" "$chart"
fi

out=${2-deploy/manifests/shared-socket.yaml}
{
	cat <<-'HEAD'
		# Shared Socket for every Linux node of a cluster: kubectl apply -f shared-socket.yaml
		#
		# Made by `make manifests` from the chart in deploy/helm, with its defaults. Do not edit; tests compare the two.
		# For Kubernetes 1.30 and newer: before, the field appArmorProfile is an annotation, which the chart knows.
	HEAD
	"$tool" --namespace shared-socket --set namespace.create=true --set helmLabels=false --kube-version 1.30.0 "$chart"
} >"$out.new"
mv "$out.new" "$out"
