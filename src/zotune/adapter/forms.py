"""What theta stands for, and where it starts.

Forms of LoRA with fewer trained numbers (FORMS) are functions from their theta to LoRA's matrices: engines and files
see LoRA's alone. A soft prompt (PromptSpec) is no LoRA: its theta is the vectors themselves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from zotune.adapter.spec import PROMPT_EMBEDDINGS, AdapterSpec, LoraSpec, Shapes
from zotune.zo.draws import gaussian, uniform


def initial_theta(shapes: Shapes, seed: int, spec: AdapterSpec | None = None) -> dict[str, np.ndarray]:
    """The initial point: LoRA's B and VeRA's b are zero, A uniform in +-1/sqrt(inputs) (Kaiming with a = sqrt 5) and
    d = 0.1, all as PEFT's; a soft prompt is Gaussian of deviation 0.02, as the embeddings of models start. What the
    start of `spec` holds is taken from there."""
    start = spec.start.tensors if spec and spec.start else {}

    def initial(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name in start:
            return start[name]
        if name == PROMPT_EMBEDDINGS:
            return np.float32(0.02) * gaussian(seed, f"initial/{name}", shape)
        if name.endswith("lora_A.weight"):
            return uniform(seed, f"initial/{name}", shape, bound=shape[1] ** -0.5)
        return np.full(shape, 0.1 if name.endswith("vera_lambda_d") else 0.0, dtype=np.float32)

    return {name: initial(name, shape) for name, shape in shapes.items()}


@dataclass(frozen=True)
class _Form:
    """How theta stands for LoRA's matrices.

    `shapes` maps LoRA's shapes to theta's; `frozen` draws what is not trained; `matrices` puts LoRA's together.
    """

    shapes: Callable[[Shapes], Shapes]
    frozen: Callable[[LoraSpec], dict[str, np.ndarray]]
    matrices: Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray], LoraSpec], dict[str, np.ndarray]]


def trained_shapes(matrices: Shapes, spec: LoraSpec) -> Shapes:
    """The shapes of theta, from those of LoRA's matrices."""
    return FORMS[spec.peft_type].shapes(matrices)


def lora_matrices(theta: Mapping[str, np.ndarray], spec: LoraSpec) -> dict[str, np.ndarray]:
    """The A and B that theta stands for, under the names in PEFT's files; what else is in theta is left out."""
    found = FORMS[spec.peft_type].matrices(theta, _frozen(spec), spec)
    return {name: value for name, value in found.items() if is_matrix(name)} if spec.modules_to_save else found


def is_matrix(name: str) -> bool:
    """Whether a tensor is one of LoRA, by its name in theta."""
    return ".lora_" in name or ".vera_" in name


def lora_tangents(direction: Mapping[str, np.ndarray], spec: LoraSpec) -> dict[str, np.ndarray]:
    """How A and B change as theta moves along `direction`: every form is linear in theta but for what is frozen."""
    frozen = _frozen(spec)
    moved = FORMS[spec.peft_type].matrices(direction, frozen, spec)
    return {name: np.zeros_like(value) if name in frozen else value for name, value in moved.items()}


@lru_cache(maxsize=4)
def _frozen(spec: LoraSpec) -> dict[str, np.ndarray]:
    return FORMS[spec.peft_type].frozen(spec)


def _vera_shapes(matrices: Shapes) -> Shapes:
    """d of length rank and b of length outputs for each module."""
    return {
        name.replace("lora_A.weight", "vera_lambda_d").replace("lora_B.weight", "vera_lambda_b"): (shape[0],)
        for name, shape in matrices.items()
    }


def _vera_frozen(spec: LoraSpec) -> dict[str, np.ndarray]:
    """One A [rank, most inputs] and one B [most outputs, rank] for all modules, Kaiming-uniform as PEFT's."""
    inputs = max(shape[1] for name, shape in spec.matrices if name.endswith("lora_A.weight"))
    outputs = max(shape[0] for name, shape in spec.matrices if name.endswith("lora_B.weight"))
    return {
        "A": uniform(spec.frozen_seed, "vera_A", (spec.rank, inputs), bound=(6 / inputs) ** 0.5),
        "B": uniform(spec.frozen_seed, "vera_B", (outputs, spec.rank), bound=(6 / spec.rank) ** 0.5),
    }


def _vera_matrices(
    theta: Mapping[str, np.ndarray], frozen: Mapping[str, np.ndarray], spec: LoraSpec
) -> dict[str, np.ndarray]:
    """A = diag(d) A_shared and B = diag(b) B_shared, each cut to its module."""
    return {
        name: theta[vector][:, None] * frozen["A" if name.endswith("lora_A.weight") else "B"][: shape[0], : shape[1]]
        for (name, shape), vector in zip(spec.matrices, _vera_shapes(dict(spec.matrices)), strict=True)
    }


FORMS = {
    "lora": _Form(lambda matrices: matrices, lambda spec: {}, lambda theta, frozen, spec: dict(theta)),
    # LoRA-FA (Zhang et al., 2023, arXiv 2308.03303): A stays as it starts.
    "lora_fa": _Form(
        lambda matrices: {name: shape for name, shape in matrices.items() if name.endswith("lora_B.weight")},
        lambda spec: initial_theta(
            {name: shape for name, shape in spec.matrices if name.endswith("lora_A.weight")}, spec.frozen_seed, spec
        ),
        lambda theta, frozen, spec: {**frozen, **theta},
    ),
    # VeRA (Kopiczko et al., 2024, arXiv 2310.11454): a frozen random A and B for all modules, trained scalings of rows.
    "vera": _Form(_vera_shapes, _vera_frozen, _vera_matrices),
}
