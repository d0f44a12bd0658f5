#!/usr/bin/env bash
# Unpacks the source of Debian (Ubuntu) packages, for the test suites that only the source carries.
#   scripts/fetch-source.sh DIR PACKAGE...
# The machine's own apt configuration is not touched: a private one asks the same servers for the sources. A package that
# is unpacked already is left alone. Prints DIR/PACKAGE for each.
set -euo pipefail

dir=$1
shift
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
wanted=()
for package in "$@"; do
	[ -e "$dir/$package/.complete" ] || wanted+=("$package")
done

if [ "${#wanted[@]}" -gt 0 ]; then
	apt=$dir/.apt
	mkdir -p "$apt/parts" "$apt/lists/partial" "$apt/cache/archives/partial"
	for file in /etc/apt/sources.list.d/*.sources; do
		[ -e "$file" ] && sed 's/^Types:.*/Types: deb-src/' "$file" >"$apt/parts/${file##*/}"
	done
	for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
		[ -s "$file" ] && sed -n 's/^deb /deb-src /p' "$file" >"$apt/parts/${file##*/}"
	done
	options=(-q -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$apt/parts" -o Dir::State::lists="$apt/lists"
		-o Dir::Cache="$apt/cache" -o APT::Sandbox::User=root)
	apt-get "${options[@]}" update >&2
	for package in "${wanted[@]}"; do
		rm -rf "${dir:?}/$package" "$dir/.$package"
		mkdir "$dir/.$package"
		(
			cd "$dir/.$package"
			apt-get "${options[@]}" source --download-only --tar-only "$package" >&2
			# Debian's patches are not wanted, and dpkg-dev with its many dependencies is not needed, to run tests
			mkdir tree
			tar -xf ./*.orig.tar.* -C tree --strip-components=1
			touch tree/.complete
			mv tree "$dir/$package"
		)
		rm -rf "$dir/.$package"
	done
fi
for package in "$@"; do echo "$dir/$package"; done
