#!/bin/sh
# Set up .venv (needs only Python 3.11 or newer) and train. Without arguments: the built-in demo.
# Arguments go to `zotune train`, e.g.: sh run.sh --task imdb --train-data train.jsonl
set -eu
root=$(cd "$(dirname "$0")" && pwd)
sh "$root/setup.sh"
exec "$root/.venv/bin/zotune" train "$@"
