#!/bin/sh
# MeZO on the small OPT and IMDB: both scopes, seeds 0-2, 1,000 training reviews, 500 held out of the training file for the choice
# of the best adapter, 1,000 of the test file for the table. Writes the table into docs/results.md.
#   sh runs/imdb_opt_imdb_4m.sh [MODEL_FOLDER] [DATA_FOLDER] [OUTPUT_FOLDER]
# DATA_FOLDER holds train.jsonl.gz and test.jsonl.gz with fields text and label. Two runs go side by side, a core each.
set -eu
cd "$(dirname "$0")/.."
model=${1:-../shared/models/opt-imdb-4m}
data=${2:-../shared/data/imdb}
output=${3:-output/imdb_opt_imdb_4m}
sh setup.sh
PATH="$PWD/.venv/bin:$PATH"
export model data output
mkdir -p "$output"

zotune evaluate --model "$model" --task imdb --eval-data "$data/test.jsonl.gz" --max-eval-samples 1000 \
    --max-length 256 --output-file "$output/zero-shot.json"

one_run() {
    scope=$1 seed=$2 run="$output/$1-$2"
    if [ -d "$run" ]; then
        zotune resume "$run"
    else
        zotune train --model "$model" --task imdb --train-data "$data/train.jsonl.gz" --max-train-samples 1000 \
            --max-eval-samples 500 --max-length 256 --target-modules q_proj k_proj v_proj out_proj \
            --scope "$scope" --seed "$seed" --num-steps 600 --estimator spsa --optimizer sgd --directions 1 \
            --tuning lora --init-lora-weights kaiming \
            --learning-rate 1e-3 --lr-scheduler-type constant --num-threads 1 --output-dir "$run"
    fi
    zotune evaluate --adapter "$run/best" --eval-data "$data/test.jsonl.gz" --max-eval-samples 1000 \
        --num-threads 1 --output-file "$run/test.json"
}

for seed in 0 1 2; do
    one_run activated $seed >"$output/activated-$seed.log" 2>&1 &
    one_run everywhere $seed >"$output/everywhere-$seed.log" 2>&1 &
    wait
done
python runs/tables.py imdb "$output" docs/results.md
