"""What a user gets wrong is refused with exit code 2 and one sentence that names the option, or the file and line."""

import fcntl
import gzip
import io
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from string import Template

import datasets
import pytest

from tests.conftest import CONTEXT, REVIEWS
from zotune import InputError, mezo_finetune
from zotune.cli import main

ZOTUNE = Path(sys.executable).with_name("zotune")
GOOD_LINE = '{"text": "a fine film", "label": 1}\n'
WHOLE_GZ = gzip.compress(b"".join(json.dumps(review).encode() + b"\n" for review in REVIEWS))

FILES: dict[str, str | bytes] = {
    "empty.jsonl": "",
    "blank.jsonl": "\n  \n",
    "broken.jsonl": GOOD_LINE * 6 + '{"text": oops}\n',
    "list.jsonl": GOOD_LINE + "[1, 2]\n",
    "lines.json": GOOD_LINE * 2,
    "object.json": '{"text": "not a list"}',
    "body.jsonl": GOOD_LINE + '{"body": "x", "label": 1}\n',
    "empty_text.jsonl": GOOD_LINE + '{"text": " ", "label": 1}\n',
    "number_text.jsonl": GOOD_LINE + '{"text": 5, "label": 1}\n',
    "label_good.jsonl": GOOD_LINE + '{"text": "a", "label": "good"}\n',
    "label_2.jsonl": GOOD_LINE + '{"text": "a", "label": 2}\n',
    "label_minus.jsonl": GOOD_LINE + '{"text": "a", "label": -1}\n',
    "label_half.jsonl": GOOD_LINE + '{"text": "a", "label": 0.5}\n',
    "label_infinite.jsonl": GOOD_LINE + '{"text": "a", "label": Infinity}\n',
    "label_null.jsonl": GOOD_LINE + '{"text": "a", "label": null}\n',
    "no_label.jsonl": '{"text": "a"}\n',
    "one.jsonl": GOOD_LINE,
    "notes.txt": "just text\n",
    "short_row.csv": "text,label\na,1\nb\n",
    "long_row.csv": "text,label\na,1\nb,1,2\n",
    "open_quote.csv": 'text,label\n"a,1\n',
    "cut.jsonl.gz": WHOLE_GZ[:-20],
    "damaged.jsonl.gz": WHOLE_GZ[:20] + b"\xff\xff\xff" + WHOLE_GZ[23:],
    "plain.jsonl.gz": GOOD_LINE,
    "text.parquet": GOOD_LINE,
    "utf16.jsonl": GOOD_LINE.encode("utf-16"),
    "stuff.jsonl": '{"stuff": "x"}\n',
    "completion.jsonl": '{"prompt": "x", "completion": "y"}\n' * 2,
    "long_completion.jsonl": json.dumps({"prompt": "x", "completion": "and so on " * CONTEXT}) + "\n",
    "invocation_in_completion.jsonl": '{"prompt": "It was", "completion": "so It was."}\n',
    "unknown_key.toml": "num_step = 3\n",
    "syntax.toml": "num_steps = [\n",
    "type.toml": "num_steps = '3'\n",
    "range.toml": "epsilon = 0\n",
    "beta3.toml": "[adam]\nbeta3 = 1.0\n",
    "no_table.toml": "adam = 3\n",
    "old_name.toml": "svrg_steps = 3\n",
    "choice.toml": "scope = 'both'\n",
    "saved/dataset_info.json": "{}",
    "no_files/.keep": "",
    "no_config/weights.bin": "",
    "odd_config/config.json": "{oops",
    "no_run/notes.txt": "precious",
}

# $OPT, $LLAMA and $GPT2 are model folders, $REVIEWS a good file, $BAD the folder of FILES, $RUN a finished run.
TRAIN = "train --model $OPT --num-steps 2 --batch-size 2 --output-dir run"
DATA = f"{TRAIN} --task demo --train-data"
GOOD = f"{DATA} $REVIEWS"
USE = "evaluate --adapter $RUN/adapter --eval-data $REVIEWS"

REFUSED: dict[str, tuple[str, tuple[str, ...]]] = {
    # data files
    "no such file": (f"{DATA} no/such/file.jsonl", ("--train-data", "no file no/such/file.jsonl")),
    "no such evaluation file": (f"{GOOD} --eval-data nothing.jsonl", ("--eval-data", "no file nothing.jsonl")),
    "unreachable hub id": (f"{DATA} nobody/nothing", ("--train-data", "'nobody/nothing' could not be loaded")),
    "unknown suffix": (f"{DATA} $BAD/notes.txt", ("--train-data", "notes.txt ends in .txt", ".jsonl")),
    "empty file": (f"{DATA} $BAD/empty.jsonl", ("--train-data", "empty.jsonl holds no records")),
    "blank lines only": (f"{DATA} $BAD/blank.jsonl", ("--train-data", "blank.jsonl holds no records")),
    "broken JSON": (f"{DATA} $BAD/broken.jsonl", ("$BAD/broken.jsonl:7", "not JSON", "column 10")),
    "a record that is a list": (f"{DATA} $BAD/list.jsonl", ("list.jsonl:2", "expected an object", "got list")),
    "JSON lines named .json": (f"{DATA} $BAD/lines.json", ("lines.json:2", "name it .jsonl")),
    "JSON that is no list": (f"{DATA} $BAD/object.json", ("object.json", "expected a list of objects, got dict")),
    "missing field": (f"{DATA} $BAD/body.jsonl", ("body.jsonl:2", "no field 'text'", "body", "--fields text=NAME")),
    "empty text": (f"{DATA} $BAD/empty_text.jsonl", ("empty_text.jsonl:2", "field 'text' is empty")),
    "a number as text": (f"{DATA} $BAD/number_text.jsonl", ("number_text.jsonl:2", "should be text, got int")),
    "unknown label": (f"{DATA} $BAD/label_good.jsonl", ("label_good.jsonl:2", "'good'", "terrible, great", "--labels")),
    "label out of range": (f"{DATA} $BAD/label_2.jsonl", ("label_2.jsonl:2", "label 2 is outside 0..1", "--labels")),
    "hidden label -1": (f"{DATA} $BAD/label_minus.jsonl", ("label_minus.jsonl:2", "label -1 is outside 0..1")),
    "half a label": (f"{DATA} $BAD/label_half.jsonl", ("label_half.jsonl:2", "label 0.5 is not among")),
    "infinite label": (f"{DATA} $BAD/label_infinite.jsonl", ("label_infinite.jsonl:2", "label inf is not among")),
    "null label": (f"{DATA} $BAD/label_null.jsonl", ("label_null.jsonl:2", "label None is not among")),
    "evaluation data without labels": (
        f"{GOOD} --eval-data $BAD/no_label.jsonl", ("no_label.jsonl:1", "no field 'label'", "--fields label=NAME"),
    ),
    "one record and nothing to hold out": (f"{DATA} $BAD/one.jsonl", ("--train-data", "one record", "--eval-data")),
    "CSV row too short": (f"{DATA} $BAD/short_row.csv", ("short_row.csv:3", "expected 2 columns")),
    "CSV row too long": (f"{DATA} $BAD/long_row.csv", ("long_row.csv:3", "expected 2 columns")),
    "CSV with an open quote": (f"{DATA} $BAD/open_quote.csv", ("open_quote.csv:1", "not CSV")),
    "gzip cut short": (f"{DATA} $BAD/cut.jsonl.gz", ("--train-data", "cannot read", "cut.jsonl.gz", "ended before")),
    "gzip damaged": (f"{DATA} $BAD/damaged.jsonl.gz", ("--train-data", "cannot read", "damaged.jsonl.gz")),
    "gzip that is none": (f"{DATA} $BAD/plain.jsonl.gz", ("--train-data", "cannot read", "Not a gzipped file")),
    "parquet that is none": (f"{DATA} $BAD/text.parquet", ("--train-data", "text.parquet is not parquet")),
    "not UTF-8": (f"{DATA} $BAD/utf16.jsonl", ("utf16.jsonl:1", "not UTF-8 (byte 0xff)")),
    "folder without data": (f"{DATA} $BAD/no_files", ("--train-data", "no_files", "doesn't contain any data files")),
    "damaged saved data set": (f"{DATA} $BAD/saved", ("--train-data", "saved", "could not be loaded")),
    "--fields of no pair": (f"{GOOD} --fields text", ("--fields", "text=body", "got 'text'")),
    "--fields of an absent column": (f"{GOOD} --fields text=body", ("$REVIEWS:1", "no field 'body'", "--fields")),
    "--fields of no role": (f"{GOOD} --fields txt=text", ("--fields txt=text", "no field 'txt'", "text, label")),
    # task, template, invocation, labels
    "unknown task": (f"{TRAIN} --task imbd", ("--task", "'imbd'", "did you mean imdb?")),
    "texts with labels but no words": (f"{TRAIN} --train-data $REVIEWS", ("--labels", "--labels terrible great")),
    "fields of no task": (f"{TRAIN} --train-data $BAD/stuff.jsonl", ("--task", "stuff", "--fields")),
    "task without data": (f"{TRAIN} --task completion", ("--train-data", "task completion has no data set")),
    "labels for plain text": (f"{TRAIN} --task lm --labels a b", ("--labels", "task lm has no labels")),
    "invocation for plain text": (f"{TRAIN} --task lm --invocation :", ("--invocation", "task lm has no prompt")),
    "same label word twice": (f"{GOOD} --labels great great", ("--labels", "'great' twice")),
    "same word under two names": (f"{GOOD} --labels a=great b=great", ("--labels: words must differ", "'great' twice")),
    "label words of the same tokens": (f"{GOOD} --labels great ' great'", ("--labels", "the same tokens")),
    "one label": (f"{GOOD} --labels great", ("--labels", "two labels or more, got 'great'")),
    "empty label word": (f"{GOOD} --labels great ''", ("--labels", "'' is no word")),
    "ambiguous number words": (f"{GOOD} --labels 1 2", ("--labels", "a 1 in the data", "1=1")),
    "label word with the invocation": (
        f"{GOOD} --labels bad 'great It was'", ("--labels", "'great It was' contains the invocation ' It was'"),
    ),
    "activated without invocation": (
        f"{GOOD} --invocation '' --scope activated", ("--scope activated needs --invocation", "--scope everywhere"),
    ),
    "invocation with a field": (f"{GOOD} --invocation ' {{text}}'", ("--invocation", "must be fixed text")),
    "invocation with a brace": (f"{GOOD} --invocation ' {{'", ("--invocation", "' {'", "must be fixed text")),
    "template with an open brace": (f"{GOOD} --template '{{text'", ("--template", "'{text' is not a template")),
    "template with empty braces": (f"{GOOD} --template '{{}}'", ("--template", "names in braces such as {text}")),
    "template with a number": (f"{GOOD} --template '{{0}}'", ("--template", "names in braces such as {text}")),
    "template with a format": (f"{GOOD} --template '{{text:d}}'", ("--template", "names in braces", "{text:d}")),
    "template with a conversion": (f"{GOOD} --template '{{text!z}}'", ("--template", "names in braces", "{text!z}")),
    "template without a field": (f"{GOOD} --template hello", ("--template", "'hello' uses no field")),
    "template of an absent field": (f"{GOOD} --template '{{title}}'", ("$REVIEWS:1", "no field 'title'", "title=NAME")),
    "completion with the invocation": (
        f"{TRAIN} --train-data $BAD/invocation_in_completion.jsonl --eval-data $BAD/completion.jsonl "
        "--invocation ' It was'",
        ("invocation_in_completion.jsonl:1", "completion contains the invocation ' It was'", "--invocation"),
    ),
    "objective of another task": (f"{GOOD} --objective token_nll", ("--objective token_nll", "needs a completion")),
    # numbers and choices
    "lora rank 0": (f"{GOOD} --lora-rank 0", ("--lora-rank must be 1 or more, got 0",)),
    "lora alpha infinite": (f"{GOOD} --lora-alpha inf", ("--lora-alpha must be a finite number above 0, got inf",)),
    "epsilon 0": (f"{GOOD} --epsilon 0", ("--epsilon must be a finite number above 0, got 0",)),
    "epsilon not a number": (f"{GOOD} --epsilon nan", ("--epsilon must be a finite number above 0, got nan",)),
    "negative learning rate": (f"{GOOD} --learning-rate -1", ("--learning-rate must be", "above 0, got -1",)),
    "momentum 1": (
        f"{GOOD} --optimizer sgd --sgd.momentum 1",
        ("--sgd.momentum must be a finite number, 0 or more and below 1, got 1",),
    ),
    "momentum of adam": (
        f"{GOOD} --optimizer adam --sgd.momentum 0.5",
        ("--sgd.momentum has no effect with --optimizer adam; it is for --optimizer sgd",),
    ),
    "betas of sgd": (
        f"{GOOD} --optimizer sgd --adam.beta1 0.5",
        ("--adam.beta1 has no effect with --optimizer sgd; it is for --optimizer adam",),
    ),
    "beta 1": (
        f"{GOOD} --optimizer adam --adam.beta2 1",
        ("--adam.beta2 must be a finite number, 0 or more and below 1, got 1",),
    ),
    "adam eps 0": (
        f"{GOOD} --optimizer adam --adam.eps 0", ("--adam.eps must be a finite number, above 0 and at most 1, got 0",),
    ),
    "smoothing of adam": (
        f"{GOOD} --hizoo.smoothing 0.1",
        ("--hizoo.smoothing has no effect with --estimator one_sided and --optimizer adam; it is for",),
    ),
    "smoothing of 1": (
        f"{GOOD} --estimator hizoo --optimizer hizoo --hizoo.smoothing 1",
        ("--hizoo.smoothing must be a finite number, above 0 and below 1, got 1",),
    ),
    "a setting of its old name": (f"{GOOD} --adam-beta1 0.9", ("--adam-beta1", "use --adam.beta1 or --adamw.beta1")),
    "an adapter of its old name": (f"{GOOD} --peft-type vera", ("--peft-type", "use --tuning")),
    "bits of their old name": (f"{USE} --load_in_4bit", ("--load_in_4bit", "use --quantization nf4")),
    "unknown setting of a method": ("train $BAD/beta3.toml", ("--adam.beta3: adam has no setting", "beta1")),
    "a table that is none": ("train $BAD/no_table.toml", ("no_table.toml: adam: expected a table, got 3",)),
    "an old name in a file": ("train $BAD/old_name.toml", ("old_name.toml: svrg_steps", "use --svrg.steps")),
    "clip 0": (f"{GOOD} --clip 0", ("--clip must be a finite number above 0, got 0",)),
    "shaping of spsa": (f"{GOOD} --es.shaping rank", ("--es.shaping has no effect with", "it is for --estimator es")),
    "no such shaping": (f"{GOOD} --estimator es --es.shaping ranks", ("--es.shaping must be 'z-score' or 'rank'",)),
    "anchor of spsa": (f"{GOOD} --svrg.steps 3", ("--svrg.steps has no effect with", "it is for --estimator svrg")),
    "no anchor": (f"{GOOD} --estimator svrg --svrg.steps 0", ("--svrg.steps must be a whole number, 1 or more",)),
    "anchor of other directions": (
        f"{GOOD} --estimator svrg --sparsity 0.5", ("--estimator svrg", "--sparsity changes; leave that out"),
    ),
    "anchor of another period": (
        f"{GOOD} --estimator svrg --noise low_rank", ("--estimator svrg", "noise of periods changes"),
    ),
    "measuring eps one-sided": (
        f"{GOOD} --adaptive.steps 3", ("--adaptive.steps has no effect with --estimator one_sided",),
    ),
    "fzoo of one direction": (
        f"{GOOD} --estimator fzoo --directions 1", ("--estimator fzoo needs --directions 2 or more",),
    ),
    "half of hizoo": (f"{GOOD} --estimator hizoo", ("--estimator hizoo and --optimizer hizoo go together",)),
    "the other half of hizoo": (f"{GOOD} --optimizer hizoo", ("--estimator hizoo and --optimizer hizoo go together",)),
    "hizoo without a diagonal": (
        f"{GOOD} --estimator hizoo --optimizer hizoo --noise rademacher", ("--estimator hizoo needs --noise gaussian",),
    ),
    "start of vera": (
        f"{GOOD} --tuning vera --init-lora-weights eva",
        ("--init-lora-weights has no effect with --tuning vera",),
    ),
    "start of a soft prompt": (
        f"{GOOD} --tuning prompt_tuning --init-lora-weights eva",
        ("--init-lora-weights has no effect with --tuning prompt_tuning",),
    ),
    "start of all parameters": (
        f"{GOOD} --tuning full --init-lora-weights kaiming", ("--init-lora-weights has no effect with --tuning full",),
    ),
    "rank of Gaussian noise": (f"{GOOD} --low_rank.rank 3", ("--low-rank.rank has no effect with --noise gaussian",)),
    "period of nothing": (f"{GOOD} --noise-steps 3", ("--noise-steps has no effect without --noise low_rank",)),
    "low rank of vectors": (
        f"{GOOD} --noise low_rank --tuning vera", ("--noise low_rank has no effect with --tuning vera",),
    ),
    "more blocks than layers": (f"{GOOD} --noise-blocks 3", ("--noise-blocks", "3 blocks of 2 adapted layers")),
    "everything sparse": (f"{GOOD} --sparsity 1", ("--sparsity must be 0 or more and below 1, got 1",)),
    "negative weight decay": (f"{GOOD} --weight-decay -0.1", ("--weight-decay must be 0 or more, got -0.1",)),
    "batch size 0": (f"{GOOD} --batch-size 0", ("--batch-size must be 1 or more, got 0",)),
    "no steps": (f"{GOOD} --num-steps 0", ("--num-steps must be 1 or more, got 0",)),
    "no directions": (f"{GOOD} --directions 0", ("--directions must be 1 or more, got 0",)),
    "negative seed": (f"{GOOD} --seed -1", ("--seed must be 0 or more, got -1",)),
    "no patience": (f"{GOOD} --early-stopping-patience 0", ("--early-stopping-patience must be 1 or more",)),
    "warm-up of a constant rate": (
        f"{GOOD} --warmup-steps 2 --lr-scheduler-type constant", ("--warmup-steps", "constant_with_warmup"),
    ),
    "warm-up longer than the run": (
        f"{GOOD} --warmup-steps 5 --lr-scheduler-type linear", ("--warmup-steps must be at most --num-steps (2)",)
    ),
    "length below 2": (f"{GOOD} --max-length 1", ("--max-length must be 2 or more, got 1",)),
    "length beyond the context": (
        f"{GOOD} --max-length {CONTEXT + 1}", (f"--max-length {CONTEXT + 1}", f"context of {CONTEXT} tokens"),
    ),
    "no room for a prompt": (f"{GOOD} --max-length 3", ("$REVIEWS:1", "no room for a prompt", "--max-length 3")),
    "completion too long": (
        f"{TRAIN} --train-data $BAD/long_completion.jsonl --eval-data $BAD/completion.jsonl",
        ("long_completion.jsonl:1", "completion alone have", f"--max-length {CONTEXT}"),
    ),
    "unknown module": (f"{GOOD} --target-modules q_prj", ("--target-modules", "'q_prj'", "q_proj, v_proj")),
    "no module": (f"{GOOD} --target-modules", ("--target-modules names no module",)),
    "unknown device": (f"{GOOD} --device tpu", ("--device must be auto, cpu, cuda", "got tpu")),
    # models
    "no model folder": (f"{GOOD} --model /no/such/model", ("--model", "no folder /no/such/model")),
    "model folder without config": (f"{GOOD} --model $BAD/no_config", ("--model", "no_config", "without config.json")),
    "model folder with a broken config": (f"{GOOD} --model $BAD/odd_config", ("--model", "not a valid JSON file")),
    "unreachable model": (f"{GOOD} --model nobody/nothing", ("--model", "'nobody/nothing' could not be loaded")),
    # run folders
    "run folder exists": (f"{GOOD} --output-dir $RUN", ("--output-dir", "$RUN exists", "zotune resume", "--overwrite")),
    "run folder is a file": (f"{GOOD} --output-dir $REVIEWS", ("--output-dir", "$REVIEWS is a file")),
    # before the data are read, which may take long
    "run folder under a file": (
        f"{DATA} nothing.jsonl --output-dir $REVIEWS/run", ("--output-dir", "cannot write $REVIEWS/run"),
    ),
    "run folder in /proc": (f"{GOOD} --output-dir /proc/run", ("--output-dir", "cannot write /proc/run")),
    "folder of other files": (f"{GOOD} --output-dir $BAD/no_run", ("--output-dir", "no_run holds files but no run")),
    "overwriting what is no run": (
        f"{GOOD} --output-dir $BAD/no_run --overwrite", ("--overwrite", "no_run holds files but no run"),
    ),
    "resume of what is no run": ("resume $BAD/no_run", ("$BAD/no_run", "config.toml")),
    "resume of nothing": ("resume nothing", ("nothing", "config.toml")),
    "replay beyond the last step": ("replay $RUN --step 99 --output-dir out", ("--step", "steps 0 to 4, got 99")),
    "replay of a negative step": ("replay $RUN --step -1 --output-dir out", ("--step", "steps 0 to 4, got -1")),
    "replay of what is no run": ("replay $BAD/no_run --output-dir out", ("$BAD/no_run is not a run folder",)),
    "replay over other files": ("replay $RUN --output-dir $BAD/no_run", ("--output-dir", "no_run holds files")),
    "plot of what is no run": ("plot $BAD/no_run", ("$BAD/no_run is not a run folder", "metrics.jsonl")),
    "plot of nothing": ("plot", ("name at least one run folder", "zotune plot RUN")),
    "plot to nowhere": ("plot $RUN --output-dir /proc/plots", ("--output-dir", "cannot write /proc/plots")),
    # adapters
    "no adapter folder": (f"{USE} --adapter nothing", ("--adapter", "nothing is not an adapter folder")),
    "adapter of another kind": (f"{USE} --task demo --adapter $BAD/foreign_adapter", ("has peft_type 'IA3'",)),
    "adapter of another architecture": (f"{USE} --model $GPT2", ("--adapter", "another model than $GPT2")),
    "adapter of another model": (f"{USE} --model $LLAMA", ("--adapter", "another model than $LLAMA")),
    "another invocation": (f"{USE} --invocation ' Was'", ("--invocation", "' Was'", "' It was'")),
    "no invocation": (f"{USE} --invocation ''", ("--invocation", "''", "' It was'")),
    "evaluation of plain text without data": ("evaluate --task lm", ("--eval-data", "task lm has no data set")),
    "evaluation of labels without words": (
        "evaluate --model $OPT --eval-data $REVIEWS", ("--labels: the data has texts with labels",),
    ),
    "prediction of what": ("predict --model $OPT --data $REVIEWS", ("--task: say what to predict", "--labels")),
    "metrics to nowhere": (f"{USE} --output-file no/where.json", ("--output-file", "no folder no")),
    "prediction for plain text": ("predict --task lm --data $REVIEWS", ("--task", "lm has nothing to predict")),
    "prediction of no file": ("predict --adapter $RUN/adapter --data nothing.jsonl", ("--data", "nothing.jsonl")),
    "completion that fills the context": (
        f"predict --model $OPT --data $BAD/completion.jsonl --task completion --max-new-tokens {CONTEXT}",
        (f"--max-new-tokens {CONTEXT}", f"context of {CONTEXT} tokens"),
    ),
    "completion of no tokens": (
        "predict --model $OPT --data $BAD/completion.jsonl --task completion --max-new-tokens 0",
        ("--max-new-tokens must be 1 or more, got 0",),
    ),
    "negative temperature": (
        "predict --model $OPT --data $BAD/completion.jsonl --task completion --temperature -1",
        ("--temperature must be 0 or more, got -1",),
    ),
    "unknown command": ("trian", ("no command 'trian'", "did you mean train?")),
    "no command": ("", ("name a command", "train, resume, evaluate, predict")),
    # configuration files
    "no configuration file": ("train nothing.toml", ("cannot read nothing.toml",)),
    "unknown setting": ("train $BAD/unknown_key.toml", ("unknown_key.toml", "'num_step'", "did you mean num_steps?")),
    "TOML syntax": ("train $BAD/syntax.toml", ("$BAD/syntax.toml is not TOML",)),
    "TOML type": ("train $BAD/type.toml", ("$BAD/type.toml: num_steps: expected a whole number, got '3'",)),
    "TOML range": ("train $BAD/range.toml", ("$BAD/range.toml: --epsilon must be a finite number above 0",)),
    "TOML choice": ("train $BAD/choice.toml", ("$BAD/choice.toml: scope: expected 'activated' or 'everywhere'",)),
}  # fmt: skip

# Refused by the parser, in a box of its own.
MISUSED: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown flag": (f"{GOOD} --scpe activated", ("--scpe", "--scope")),
    "a setting of no method": (f"{GOOD} --optimizer adam --adam.beta3 1", ("--adam.beta3", "--adam.beta2")),
    "bad choice": (f"{GOOD} --scope both", ("'both'", "--scope", "activated", "everywhere")),
    "unknown optimizer": (f"{GOOD} --optimizer adagrad", ("'adagrad'", "--optimizer", "muon")),
    "a word for a number": (f"{GOOD} --num-steps many", ("--num-steps", "many")),
    "a flag without its value": (f"{TRAIN} --train-data", ("--train-data",)),
    "replay without a destination": ("replay $RUN", ("--output-dir", "required")),
}


@pytest.fixture(scope="module")
def places(model_dirs: dict[str, Path], reviews_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the placeholders of the tables stand for."""
    bad = tmp_path_factory.mktemp("bad")
    for name, content in FILES.items():
        path = bad / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    run = tmp_path_factory.mktemp("runs") / "finished"
    mezo_finetune(
        str(model_dirs["opt"]), str(reviews_file), task="demo", num_steps=4, batch_size=2, num_threads=1,
        output_dir=str(run),
    )  # fmt: skip
    shutil.copytree(run / "adapter", bad / "foreign_adapter")
    adapter_config = bad / "foreign_adapter" / "adapter_config.json"
    adapter_config.write_text(adapter_config.read_text().replace('"LORA"', '"IA3"'))
    return {name.upper(): str(path) for name, path in model_dirs.items()} | {
        "REVIEWS": str(reviews_file), "BAD": str(bad), "RUN": str(run),
    }  # fmt: skip


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a folder of its own; the command's logging ends with the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    logger = logging.getLogger("zotune")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


def arguments_of(command: str, places: dict[str, str]) -> list[str]:
    return [filled(argument, places) for argument in shlex.split(command)]


def filled(text: str, places: dict[str, str]) -> str:
    return Template(text).safe_substitute(places)


def contents(folder: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command wrote to standard error when it refused `arguments`."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.out == ""
    return captured.err


@pytest.mark.parametrize(("command", "pieces"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_one_sentence_and_nothing_written(command, pieces, places, capsys, tmp_path):
    before = contents(places["RUN"]), contents(places["BAD"])
    *_, message = refusal(arguments_of(command, places), capsys).splitlines()
    assert message.startswith("zotune: ")
    for piece in pieces:
        assert filled(piece, places) in message
    assert list(tmp_path.iterdir()) == []
    assert (contents(places["RUN"]), contents(places["BAD"])) == before


@pytest.mark.parametrize(("command", "pieces"), MISUSED.values(), ids=MISUSED.keys())
def test_misuse_is_explained_by_the_parser(command, pieces, places, capsys, tmp_path):
    message = refusal(arguments_of(command, places), capsys)
    for piece in pieces:
        assert piece in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", ["unknown setting", "epsilon 0", "broken JSON"])
@pytest.mark.slow
def test_the_installed_command_refuses_with_exit_code_2(case, places, tmp_path):
    command, pieces = REFUSED[case]
    done = subprocess.run(
        [ZOTUNE, *arguments_of(command, places)], capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for piece in pieces:
        assert filled(piece, places) in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_broken_line_on_standard_input_is_refused_with_its_number(places, capsys, monkeypatch, tmp_path):
    for line, reason in (
        (b'{"text": oops}', "standard input:3: not JSON: Expecting value at column 10"),
        (b"caf\xe9", "standard input:3: not UTF-8 (byte 0xe9)"),
        (b'{"text": "half of \\ud83d"}', "standard input:3: field 'text' has half a character in it"),
        (b'{"text": "a", "text": "b"}', "standard input:3: an object has the key 'text' twice"),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "a"}\r\n\n' + line + b"\n")))
        message = refusal(arguments_of("predict --adapter $RUN/adapter", places), capsys)
        assert reason in message


def test_a_run_in_use_is_not_resumed(places, capsys):
    with Path(places["RUN"], "journal.jsonl").open("ab") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        message = refusal(arguments_of("resume $RUN", places), capsys)
    assert f"{places['RUN']} is in use by another zotune process" in message


def test_a_run_is_not_resumed_with_other_data(places, capsys, tmp_path):
    shutil.copytree(places["RUN"], tmp_path / "run")
    (tmp_path / "changed.jsonl").write_text(Path(places["REVIEWS"]).read_text().replace("film", "movie"))
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace(places["REVIEWS"], "changed.jsonl"))
    message = refusal(["resume", "run"], capsys)
    assert "was started with other training examples, evaluation examples" in message


def test_a_model_folder_whose_tokenizer_is_gone_is_named(places, capsys, tmp_path):
    shutil.copytree(places["OPT"], tmp_path / "model")
    for path in (tmp_path / "model").glob("tokenizer*"):
        path.unlink()
    *_, message = refusal(arguments_of(f"{GOOD} --model {tmp_path}/model", places), capsys).splitlines()
    assert "tokenizer" in message
    assert not Path("run").exists()


WRONG_CALLS = {
    "unknown keyword": ({"learning_rte": 1.0}, "unknown setting 'learning_rte'; did you mean learning_rate?"),
    "text for a number": ({"num_steps": "2"}, "num_steps: expected a whole number, got '2'"),
    "one word for label words": ({"labels": "great"}, "labels: expected a list of strings, got 'great'"),
    "a number for data": ({"train_data": 5}, "--train-data: expected a path, a list of dicts"),
    "texts for records": ({"train_data": ["a", "b"]}, r"--train-data\[0\]: expected an object with fields, got str"),
    "several data sets": (
        {"train_data": datasets.DatasetDict(train=datasets.Dataset.from_list(REVIEWS[:2]))},
        "--train-data: expected one data set, got a DatasetDict of train",
    ),
    "no records": ({"train_data": []}, "--train-data: it holds no records"),
    "a record without text": ({"train_data": [*REVIEWS, {"label": 1}]}, r"--train-data\[40\]: no field 'text'"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_CALLS.values(), ids=WRONG_CALLS.keys())
def test_wrong_calls_are_refused_and_nothing_is_written(wrong, message, places, tmp_path):
    call = {"train_data": REVIEWS, "task": "demo", "num_steps": 2, "output_dir": str(tmp_path / "run")} | wrong
    with pytest.raises(InputError, match=message):
        mezo_finetune(places["OPT"], **call)
    assert list(tmp_path.iterdir()) == []
