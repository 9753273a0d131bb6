#!/bin/sh
# Make .venv with zotune installed; does nothing where it is up to date. `sh setup.sh dev` adds the test tools.
set -eu
cd "$(dirname "$0")"
extras=${1:-}
stamp=.venv/.installed-${extras:-base}
if [ -f "$stamp" ] && [ ! pyproject.toml -nt "$stamp" ]; then exit 0; fi

python=python3
for candidate in python3.11 python3.12 python3.13 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        python=$candidate
        break
    fi
done
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "zotune needs Python 3.11 or newer" >&2; exit 1; }

echo "setting up .venv (once; some minutes)" >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip=".venv/bin/python -m pip --disable-pip-version-check --quiet"
# The version is named so that the build for this machine is taken, not the newest for another accelerator.
.venv/bin/python -c 'import torch' 2>/dev/null || $pip install torch==2.13.0
$pip install -e ".${extras:+[$extras]}"
touch "$stamp"
