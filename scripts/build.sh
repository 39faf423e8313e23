#!/usr/bin/env bash
# build.sh OUT: one static binary.
#
# With a C compiler that can link statically, zstd is libzstd (about twice as
# fast); without one it is the Go implementation. The bytes on disk are valid
# for both. netgo and osusergo keep glibc's resolver out, which cannot be static.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1

version=$(git -c safe.directory='*' describe --tags --always --dirty 2>/dev/null || echo unknown)
ldflags="-s -w -X main.version=$version"

links_statically() {
	local dir
	command -v gcc >/dev/null || return 1
	dir=$(mktemp -d)
	# shellcheck disable=SC2064 # the folder of this call, not of a later one
	trap "rm -rf '$dir'" RETURN
	echo 'int main(void) { return 0; }' >"$dir/probe.c"
	gcc -static -o "$dir/probe" "$dir/probe.c" 2>/dev/null
}

if [ "${CGO_ENABLED:-1}" != 0 ] && links_statically; then
	CGO_ENABLED=1 go build -buildvcs=false -tags netgo,osusergo \
		-ldflags "$ldflags -linkmode external -extldflags -static" -o "$out" ./cmd/cairn
	how="libzstd"
else
	CGO_ENABLED=0 go build -buildvcs=false -tags netgo,osusergo -ldflags "$ldflags" -o "$out" ./cmd/cairn
	how="pure Go: no C compiler that links statically"
fi
echo "built $out $version ($how)"
