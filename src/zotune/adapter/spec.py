"""What an adapter is, but for its numbers: its form, and the names that its tensors have.

The names are those in PEFT's files. What theta stands for is in `forms`, adapter folders are in `peft_files`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from zotune.adapter.start import Start
from zotune.zo.setting import setting

Shapes = Mapping[str, tuple[int, ...]]

PROMPT_EMBEDDINGS = "prompt_embeddings"  # the one tensor of a soft prompt, in theta and in PEFT's file
_PREFIX = "base_model.model."
_PREFIX_OF_PROMPT = "base_model."


@dataclass(frozen=True)
class Selection:
    """Which of the targeted modules are adapted, and which have another rank or scale: settings of PEFT, as it means
    them (`peft_rules`). A text in place of names is a regular expression."""

    exclude_modules: tuple[str, ...] | str = ()
    layers_to_transform: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    use_rslora: bool = False


@dataclass(frozen=True)
class LoraSpec:
    """The form of an adapter: everything but its numbers. With `invocation_tokens` it is an activated one.

    `target_modules` are names, or one regular expression as a text. Forms that freeze something have its seed, and the
    names and shapes of LoRA's matrices, which the engine fills in. `start` holds what is not drawn from the seed.
    `modules_to_save`, the modules that are trained whole, and `task_type` are PEFT's; of an adapter that was read the
    latter is the model's to say.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...] | str
    invocation_tokens: tuple[int, ...] | None = None
    fan_in_fan_out: bool = False  # PEFT's word for modules that keep their weight transposed, as GPT-2's do
    peft_type: str = "lora"
    frozen_seed: int = 0
    matrices: tuple[tuple[str, tuple[int, ...]], ...] = ()
    start: Start | None = None
    selection: Selection = Selection()
    task_type: str | None = "CAUSAL_LM"
    modules_to_save: tuple[str, ...] = ()
    virtual_tokens: ClassVar[tuple[int, ...]] = ()

    @property
    def scope(self) -> str:
        return "everywhere" if self.invocation_tokens is None else "activated"


@dataclass(frozen=True)
class PromptSpec:
    """The form of a soft prompt (Lester et al., 2021, arXiv 2104.08691): how many trained vectors precede every prompt.

    Their places in an example are `virtual_tokens`, the ids -1, -2, ...: no tokenizer's, so they stay apart from text.
    `modules_to_save` and `task_type` are as in LoraSpec.
    """

    num_virtual_tokens: int = setting(
        20,
        "Trained vectors in front of every prompt; they count towards --max-length.",
        at_least=1,
        at_most=65_536,
    )
    start: Start | None = None
    task_type: str | None = "CAUSAL_LM"
    modules_to_save: tuple[str, ...] = ()
    peft_type: ClassVar[str] = "prompt_tuning"
    scope: ClassVar[str] = "everywhere"
    invocation_tokens: ClassVar[None] = None

    @property
    def virtual_tokens(self) -> tuple[int, ...]:
        return tuple(range(-1, -self.num_virtual_tokens - 1, -1))


AdapterSpec = LoraSpec | PromptSpec


def module_tensor_name(module_name: str, parameter: str, beside_prompt: bool = False) -> str:
    """The name of a parameter of a module that is trained whole, in PEFT's files: beside LoRA, or a soft prompt."""
    return f"{_PREFIX_OF_PROMPT if beside_prompt else _PREFIX}{module_name}.{parameter}"


def tensor_name(module_name: str, matrix: str) -> str:
    """The name of LoRA matrix "A" or "B" of a module in PEFT's files."""
    return f"{_PREFIX}{module_name}.lora_{matrix}.weight"
