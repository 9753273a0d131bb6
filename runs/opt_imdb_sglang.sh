#!/bin/sh
# The small OPT on IMDB through the SGLang engine, scope activated, as runs/imdb_opt_imdb_4m.sh has it for the torch
# engine: 1,000 training reviews, 500 held out for the choice of the best adapter, 1,000 of the test file; then the
# time of a step against plain scoring through the same engine.
#   sh runs/opt_imdb_sglang.sh [MODEL_FOLDER] [DATA_FOLDER] [OUTPUT_FOLDER] [STEPS]
set -eu
cd "$(dirname "$0")/.."
model=${1:-../shared/models/opt-imdb-4m}
data=${2:-../shared/data/imdb}
output=${3:-output/opt_imdb_sglang}
steps=${4:-600}
sh setup.sh sglang,dev .venv-sglang
PATH="$PWD/.venv-sglang/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
mkdir -p "$output"

if [ -d "$output/run" ]; then
    zotune resume "$output/run"
else
    zotune train --engine sglang --model "$model" --task imdb --train-data "$data/train.jsonl.gz" \
        --max-train-samples 1000 --max-eval-samples 500 --max-length 256 --scope activated --seed 0 \
        --target-modules q_proj k_proj v_proj out_proj --num-steps "$steps" --estimator spsa --optimizer sgd \
        --directions 1 --tuning lora --init-lora-weights kaiming \
        --learning-rate 1e-3 --lr-scheduler-type constant --output-dir "$output/run"
fi
zotune evaluate --adapter "$output/run/best" --eval-data "$data/test.jsonl.gz" --max-eval-samples 1000 \
    --output-file "$output/test.json"
python benchmarks/sglang_speed.py --model "$model" --data "$data/train.jsonl.gz" --output "$output/speed.jsonl"
