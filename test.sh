#!/bin/sh
# Set up .venv with the test tools and run lint, types and tests. Arguments go to pytest.
# `sh test.sh --all` then runs the tests of the SGLang engine in an environment of its own (about 11 GB, some minutes).
set -eu
cd "$(dirname "$0")"
if [ "${1:-}" = --all ]; then
    shift
    sh "$0" "$@"
    sh setup.sh sglang,dev .venv-sglang
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # two ranks and the tests share the cores
    exec .venv-sglang/bin/pytest tests/test_sglang.py tests/test_sglang_serving.py
fi
sh setup.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/pytest "$@"
