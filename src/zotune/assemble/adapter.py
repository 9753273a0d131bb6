"""An adapter folder as an evaluation or a run takes it: read, and held to task and model before weights are loaded."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zotune.adapter.base import Base, read_base
from zotune.adapter.peft_files import load_adapter
from zotune.adapter.spec import AdapterSpec, PromptSpec
from zotune.adapter.start import Start
from zotune.assemble.model import Model
from zotune.config.fields import Scope
from zotune.config.settings import Config
from zotune.data.fragments import Fragments
from zotune.data.tasks import Task
from zotune.engine.torch.lora import LoraLayers
from zotune.engine.torch.soft_prompt import SoftPrompt
from zotune.errors import InputError
from zotune.zo.protocol import Engine

logger = logging.getLogger("zotune")


@dataclass(frozen=True)
class Adapter:
    """What a folder holds: numbers under the names in PEFT's files, and their form."""

    folder: Path
    theta: Mapping[str, np.ndarray]
    spec: AdapterSpec

    @classmethod
    def read(cls, folder: str | Path) -> "Adapter":
        """The adapter in a folder.

        Raises:
            InputError: there is none, or it has what zotune has not.
        """
        return cls(Path(folder), *load_adapter(Path(folder)))

    def check_fits(self, model: Model, task: Task, config: Config) -> None:
        """Refuse an adapter that is switched on by another text than the task's invocation, or is of another model.

        Raises:
            InputError: names the invocation, or the first tensor that does not fit.
        """
        if self.spec.invocation_tokens not in (None, Fragments(model.tokenizer).encode(task.invocation)):
            raise InputError(
                f"--invocation: {task.invocation!r} is not what the adapter {self.folder} is switched on by: "
                f"{model.tokenizer.decode(list(self.spec.invocation_tokens or ()))!r}"
            )
        headed = bool(self.spec.modules_to_save)
        if headed and model.num_labels is None:
            raise InputError(
                f"--adapter: {self.folder} has a classification head of its own; add --head classification"
            )
        if model.num_labels is not None and not headed:
            raise InputError(f"--adapter: {self.folder} has no head, which --head classification needs; leave that out")
        another = f"--adapter: {self.folder} was made for another model than {config.model}"
        try:
            shapes = self._shapes_in(model)
        except InputError as error:
            raise InputError(f"{another}: {error}") from error
        for name in sorted(shapes.keys() | self.theta.keys()):
            if name not in self.theta:
                raise InputError(f"{another}: it has no {name}")
            if name not in shapes:
                raise InputError(f"{another}: its tensor {name} has no place there")
            if self.theta[name].shape != shapes[name]:
                raise InputError(f"{another}: its {name} is {self.theta[name].shape}, where {shapes[name]} belongs")

    def warn_of_other_weights(self, engine: Engine, config: Config) -> None:
        """Say so where the base model's weights are known not to be those that the adapter was trained on."""
        base = read_base(self.folder)
        if base and base.differs(Base(engine.identity(), config.dtype, config.quantization)):
            logger.warning(
                "the weights of %s are not those that the adapter %s was trained on", config.model, self.folder
            )

    def settings_of(self, config: Config) -> Config:
        """The settings of a run that goes on from it: its scope, and what kind of adapter it is.

        Raises:
            InputError: `config` names others.
        """
        soft = isinstance(self.spec, PromptSpec)
        if config.tuning is not None and soft != (config.tuning == "prompt_tuning"):
            kind = "a soft prompt: take prompt_tuning" if soft else "a LoRA: take lora or lora_fa"
            raise InputError(f"--tuning {config.tuning} does not go with --adapter {self.folder}, which is {kind}")
        if config.scope not in (None, self.spec.scope):
            raise InputError(
                f"--scope {config.scope} does not go with --adapter {self.folder}, which acts in scope "
                f"{self.spec.scope}"
            )
        scope: Scope = "everywhere" if self.spec.invocation_tokens is None else "activated"
        return replace(config, scope=scope, tuning="prompt_tuning" if soft else config.tuning)

    def begun_with(self, config: Config) -> AdapterSpec:
        """The form of a run that starts at its numbers; with --tuning lora_fa, A stays what it is."""
        start = Start.of(self.theta)
        if isinstance(self.spec, PromptSpec):
            return replace(self.spec, start=start)
        assert config.tuning
        seed = 0 if config.tuning == "lora" else config.seed
        return replace(self.spec, peft_type=config.tuning, frozen_seed=seed, start=start)

    def _shapes_in(self, model: Model) -> Mapping[str, tuple[int, ...]]:
        """The tensors that an adapter of this form has on the model."""
        made: Any = SoftPrompt if isinstance(self.spec, PromptSpec) else LoraLayers
        layers = made(model.structure, self.spec)
        layers.remove()
        shapes: Mapping[str, tuple[int, ...]] = layers.shapes
        return shapes
