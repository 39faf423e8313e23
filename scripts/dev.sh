#!/usr/bin/env bash
# dev.sh BIN: serve on a temporary folder until Ctrl-C, then remove it.
set -euo pipefail
bin=$(realpath "$1")
dir=$(mktemp -d -t cairn-dev.XXXXXX)
trap 'rm -rf "$dir"' EXIT
trap : INT TERM # the server gets the signal too and stops by itself
listen=${CAIRN_LISTEN:-127.0.0.1:7480}
echo "API   http://$listen  (docs: http://$listen/docs)"
echo "local export CAIRN_SERVER=unix://$dir/cairn.sock"
"$bin" serve --data-dir "$dir" --listen "$listen" || true
