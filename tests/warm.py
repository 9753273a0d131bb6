"""What a process of `tests.processes` finds imported: the libraries, and nothing of zotune."""

# ruff: noqa: F401
import gc

import datasets
import matplotlib.pyplot
import peft
import rich.console
import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama
import transformers.models.opt.modeling_opt
import tyro

gc.freeze()  # a run collects garbage, and need not look through all of this
