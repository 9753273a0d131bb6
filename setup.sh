#!/bin/sh
# Make an environment with zotune installed; does nothing where it is up to date.
#   sh setup.sh [EXTRAS [FOLDER]]      e.g. `sh setup.sh dev` adds the test tools to .venv
# SGLang pins PyTorch and transformers, so it gets its own: `sh setup.sh sglang .venv-sglang` (about 11 GB).
set -eu
cd "$(dirname "$0")"
extras=${1:-}
folder=${2:-.venv}
stamp=$folder/.installed-${extras:-base}
if [ -f "$stamp" ] && [ ! pyproject.toml -nt "$stamp" ]; then exit 0; fi

python=python3
for candidate in python3.11 python3.12 python3.13 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        python=$candidate
        break
    fi
done
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "zotune needs Python 3.11 or newer" >&2; exit 1; }

echo "setting up $folder (once; some minutes)" >&2
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
pip="$folder/bin/python -m pip --disable-pip-version-check --quiet"
case ",$extras," in
    *,sglang,*) ;; # SGLang names its own PyTorch
    *)
        # The version is named so that the build for this machine is taken, not the newest for another accelerator.
        "$folder/bin/python" -c 'import torch' 2>/dev/null || $pip install torch==2.13.0
        ;;
esac
$pip install -e ".${extras:+[$extras]}"
touch "$stamp"
