#!/bin/sh
# MeZO's full-parameter recipe for OPT (Malladi et al., 2023, appendix): SPSA, one direction, eps 1e-3, learning rates
# 1e-6 and 1e-7, constant, no weight decay, batch 16, 20,000 steps, 1,000 training and 500 validation examples of SST-2,
# an evaluation every fifth of the run, the best one kept. Accuracy on at most 1,000 of the official validation set.
#   sh runs/mezo_full_parameter.sh [MODEL] [STEPS] [OUTPUT_FOLDER] [DATA_FOLDER]
# MODEL is a folder or a name such as facebook/opt-13b, the paper's. DATA_FOLDER holds train.jsonl.gz and dev.jsonl.gz
# with fields sentence (or text, see --fields) and label. A run that is there goes on.
set -eu
cd "$(dirname "$0")/.."
model=${1:-../shared/models/opt-imdb-4m}
steps=${2:-20000}
output=${3:-output/mezo_full_parameter}
data=${4:-../shared/data/sst2}
sh setup.sh
PATH="$PWD/.venv/bin:$PATH"
mkdir -p "$output"
for seed in 0 1 2; do
    for learning_rate in 1e-6 1e-7; do
        run="$output/$learning_rate-$seed"
        if [ -d "$run" ]; then
            zotune resume "$run"
        else
            zotune train --model "$model" --task sst2 --train-data "$data/train.jsonl.gz" --tuning full \
                --epsilon 1e-3 --learning-rate "$learning_rate" --lr-scheduler-type constant --batch-size 16 --num-steps "$steps" \
                --eval-steps $((steps / 5)) --max-train-samples 1000 --max-eval-samples 500 --seed "$seed" \
                --output-dir "$run"
        fi
        zotune evaluate --model "$run/best" --task sst2 --eval-data "$data/dev.jsonl.gz" --max-eval-samples 1000 \
            --output-file "$run/test.json"
    done
done
