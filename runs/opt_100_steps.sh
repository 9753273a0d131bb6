#!/bin/sh
# The 100-step OPT run that earlier work on MeZO with an inference engine reported, with its settings, and a report of
# what is measured: LoRA of rank 8 on q, k, v and out, batch 4, eps 1e-3, learning rate 1e-5 after 10 steps of warm-up,
# IMDB, an evaluation every 20 steps, adapters at steps 20, 40, 50, 60, 80 and 100 (rebuilt from the journal).
#   sh runs/opt_100_steps.sh [MODEL] [DATA_FOLDER] [OUTPUT_FOLDER] [ENGINE]      ENGINE: sglang (default) or torch
set -eu
cd "$(dirname "$0")/.."
model=${1:-../shared/models/opt-imdb-4m}
data=${2:-../shared/data/imdb}
output=${3:-output/opt_100_steps}
engine=${4:-sglang}
case $engine in
    sglang) sh setup.sh sglang,dev .venv-sglang && PATH="$PWD/.venv-sglang/bin:$PATH" ;;
    *) sh setup.sh && PATH="$PWD/.venv/bin:$PATH" ;;
esac
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
mkdir -p "$output"

settings="--model $model --task imdb --train-data $data/train.jsonl.gz --max-train-samples 1000 --max-eval-samples 500
    --max-length 256 --target-modules q_proj k_proj v_proj out_proj --num-steps 100 --batch-size 4 --eval-steps 20
    --estimator spsa --optimizer sgd --directions 1 --tuning lora --init-lora-weights kaiming"
for scope in activated everywhere; do
    # shellcheck disable=SC2086
    [ -f "$output/$scope/summary.json" ] || zotune train --engine "$engine" --scope $scope $settings --epsilon 1e-3 \
        --learning-rate 1e-5 --lr-scheduler-type constant_with_warmup --warmup-steps 10 --output-dir "$output/$scope"
    for step in 20 40 50 60 80 100; do
        [ -d "$output/$scope-checkpoint-$step" ] ||
            zotune replay "$output/$scope" --step $step --output-dir "$output/$scope-checkpoint-$step"
    done
done
python runs/opt_100_steps_report.py "$output" --write docs/opt_100_steps.md
