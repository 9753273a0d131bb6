"""What a process of `tests.processes` finds imported. Importing this is all that it is for."""

# ruff: noqa: F401
import gc

import matplotlib.pyplot
import peft
import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama
import transformers.models.opt.modeling_opt

import zotune.cli
import zotune.commands.console
import zotune.finetune
import zotune.inference
import zotune.run.plots
import zotune.study.compare
import zotune.study.sweep

gc.freeze()  # a run collects garbage, and need not look through all of this
