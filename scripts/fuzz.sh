#!/usr/bin/env bash
# fuzz.sh TIME: run every fuzz target of the module for TIME, one by one.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-30s}
found=0
while read -r package dir; do
	targets=$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$dir"/*_test.go 2>/dev/null || true)
	for target in $targets; do
		found=$((found + 1))
		echo "fuzz $package $target $time"
		# Else one new input of some kilobytes is made smaller for a minute.
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 1000x "$package" </dev/null
	done
done < <(go list -f '{{.ImportPath}} {{.Dir}}' ./...)
echo "$found fuzz targets ran"
[ "$found" -gt 0 ]
