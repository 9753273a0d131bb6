"""What is to be exported: the adapter (or, after full-parameter training, the model) that a user names by its folder or
by the run that it lies in.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from zotune.adapter.base import Base, read_base
from zotune.adapter.forms import is_matrix
from zotune.adapter.peft_files import CONFIG_FILE, base_model_of
from zotune.adapter.spec import PROMPT_EMBEDDINGS, LoraSpec, PromptSpec
from zotune.assemble.adapter import Adapter
from zotune.assemble.model import model_path
from zotune.config.reading import read_run_config
from zotune.config.settings import Config
from zotune.engine.torch.loading import load_config, load_model, load_tokenizer
from zotune.engine.torch.quantization import quantization_method
from zotune.errors import InputError
from zotune.run.folder import RunFolder
from zotune.values import path_of


@dataclass(frozen=True)
class Source:
    """`path` is an adapter folder or a model folder; `run` is the run that it came from, where that is at hand."""

    path: Path
    run: RunFolder | None
    asked_model: str | None = None
    trust_remote_code: bool = False

    @classmethod
    def of(cls, name: str, model: str | None = None, trust_remote_code: bool = False) -> "Source":
        """What a run folder, an adapter folder or a model folder of a run holds.

        Args:
            model: the base model, where it is another than the one that the run or the adapter names.

        Raises:
            InputError: it is none of them.
        """
        path = Path(path_of(name, "RUN"))
        if (path / CONFIG_FILE).is_file() or (path / "config.json").is_file():
            above = RunFolder(path.resolve().parent)
            in_run = above.config.is_file() and above.journal.is_file()
            return cls(path, above if in_run else None, model, trust_remote_code)
        run = RunFolder(path)
        if not run.journal.is_file():
            raise InputError(f"RUN: {name} is neither a run folder nor an adapter folder")
        for exported in (run.adapter, run.path / "model"):
            if exported.is_dir():
                return cls(exported, run, model, trust_remote_code)
        raise InputError(f"RUN: {name} has no adapter yet; `zotune replay {name} --output-dir DIR` writes one")

    @property
    def is_adapter(self) -> bool:
        return (self.path / CONFIG_FILE).is_file()

    @cached_property
    def adapter(self) -> Adapter:
        return Adapter.read(self.path)

    @cached_property
    def config(self) -> Config | None:
        """The settings of the run."""
        return read_run_config(self.run.config) if self.run else None

    @property
    def task_type(self) -> str | None:
        """PEFT's word for what the adapter's model does, as its folder says; there is none for masked models."""
        return json.loads((self.path / CONFIG_FILE).read_text(encoding="utf-8")).get("task_type")

    @property
    def model_name(self) -> str:
        """The base model as the user knows it, or the model itself.

        Raises:
            InputError: nobody names it.
        """
        if not self.is_adapter:
            return str(self.path)
        name = self.asked_model or (self.config.model if self.config else None) or base_model_of(self.path)
        if not name:
            raise InputError(f"--model: the adapter {self.path} does not name the model that it is for")
        return name

    def lora(self, what: str) -> LoraSpec:
        """The form of an adapter that changes weights; `what` is what is asked for, for the message.

        Raises:
            InputError: it changes none: it is a soft prompt.
        """
        spec = self.adapter.spec
        if isinstance(spec, PromptSpec):
            raise InputError(
                f"{what}: {self.path} is a soft prompt, vectors in front of every prompt, and changes no weight of the "
                "model; PEFT loads it as it is"
            )
        return spec

    def mergeable(self, what: str) -> LoraSpec:
        """The form of an adapter that a merged model can be equal to.

        Raises:
            InputError: there is no such model, with the reason.
        """
        spec = self.lora(what)
        if spec.invocation_tokens is not None:
            raise InputError(
                f"{what}: {self.path} is an activated adapter, which leaves every token before its invocation as the "
                "base model has it; merged weights would act on those tokens too, and give other answers. Serve it as "
                "an adapter, or train with --scope everywhere"
            )
        quantization = self._quantization()
        if quantization is not None:
            raise InputError(
                f"{what}: {self.path} was trained on a base model quantised by {quantization}, whose weights cannot "
                "take up the adapter without being rounded again; the merged model would not be what was trained"
            )
        return spec

    def load(self, folder: Path | None = None) -> PreTrainedModel:
        """The base model, or the model itself, in float32 on the CPU, with the labels that an adapter's head has.

        Args:
            folder: another model of the same kind.
        """
        path = model_path(self.model_name) if folder is None else str(folder)
        return load_model(path, "float32", "cpu", self.trust_remote_code, num_labels=self.num_labels)

    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(model_path(self.model_name), self.trust_remote_code)

    @property
    def base(self) -> Base | None:
        """The base weights that the adapter was trained on, where it names them."""
        return read_base(self.path)

    @property
    def num_labels(self) -> int | None:
        """How many labels the head of the adapter is over, where it has one."""
        spec = self.adapter.spec if self.is_adapter else None
        if spec is None or not spec.modules_to_save:
            return None
        theta = self.adapter.theta.items()
        head = [value for name, value in theta if not is_matrix(name) and name != PROMPT_EMBEDDINGS]
        return min(value.shape[0] for value in head)  # its other layers are as wide as the model

    def _quantization(self) -> str | None:
        """How the base weights were quantised that the adapter was trained on."""
        of_run = self.config.quantization if self.config else None
        own = quantization_method(load_config(model_path(self.model_name), self.trust_remote_code))
        return of_run or (self.base.quantization if self.base else None) or own
