#!/bin/sh
# Set up .venv with the test tools and run lint, types and tests. Arguments go to pytest.
set -eu
cd "$(dirname "$0")"
sh setup.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/pytest "$@"
