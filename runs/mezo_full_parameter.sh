#!/bin/sh
# MeZO's full-parameter recipe for OPT (Malladi et al., 2023, Table 16): SPSA, one direction, eps 1e-3, learning rates
# 1e-6 and 1e-7, constant, batch 16, 1,000 training and 500 validation examples, on SST-2. Accuracy on 1,000 others.
#   sh runs/mezo_full_parameter.sh [MODEL] [STEPS] [OUTPUT_FOLDER] [further options of zotune train]
# MODEL is a folder or a name such as facebook/opt-125m (the paper's: facebook/opt-13b; STEPS: 20000).
set -eu
cd "$(dirname "$0")/.."
model=${1:-../shared/models/opt-imdb-4m}
steps=${2:-20000}
output=${3:-output/mezo_full_parameter}
if [ $# -gt 3 ]; then shift 3; else shift $#; fi
sh setup.sh
PATH="$PWD/.venv/bin:$PATH"
mkdir -p "$output"
for seed in 0 1 2; do
    for learning_rate in 1e-6 1e-7; do
        run="$output/$learning_rate-$seed"
        if [ -d "$run" ]; then
            zotune resume "$run"
        else
            zotune train --model "$model" --task sst2 --tuning full --epsilon 1e-3 --learning-rate "$learning_rate" \
                --batch-size 16 --num-steps "$steps" --eval-steps 4000 --max-train-samples 1000 \
                --max-eval-samples 500 --seed "$seed" --output-dir "$run" "$@"
        fi
        zotune evaluate --model "$run/best" --task sst2 --max-eval-samples 1000 --output-file "$run/test.json"
    done
done
