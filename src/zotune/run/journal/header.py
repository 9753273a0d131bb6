"""The first line of a journal: what a replay starts from, and what a run that goes on shares with its beginning."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from zotune.adapter.base import Base
from zotune.adapter.spec import AdapterSpec, LoraSpec, PromptSpec, Selection
from zotune.adapter.start import Start
from zotune.zo.noise import GAUSSIAN, Noise
from zotune.zo.optimizers import InPlace, Optimizer, make_optimizer

FORMAT = 2
FORMATS = (1, 2)  # that can be read and gone on with


@dataclass(frozen=True)
class Header:
    """What no step changes. `data` names what the examples were, so that a resumed run can check them.

    `lora` is the form of the adapter, also of a soft prompt. Without it theta is the base model's own parameters, in
    `dtype`, and a replay needs those. Journals of format 1 know neither `settings` nor `base_weights`.
    """

    seed: int
    base_model: str
    tensors: Mapping[str, tuple[int, ...]]
    lora: AdapterSpec | None
    optimizer: Mapping[str, Any]  # {"name": a key of OPTIMIZERS, and its arguments}
    data: Mapping[str, str]  # digests, see data/digest.py
    noise: Noise = GAUSSIAN
    dtype: str | None = None
    settings: Mapping[str, Any] | None = None  # those that decide the numbers of the run
    base_weights: str | None = None  # a digest, see `Engine.identity`
    examples_version: int = 1  # of the digests in `data`
    format: int = FORMAT

    @property
    def is_chained(self) -> bool:
        """Whether the checksum of a line covers the line before."""
        return self.format > 1

    @property
    def base(self) -> Base | None:
        """What an adapter of the run was trained on; None in journals that do not know it."""
        if self.settings is None:
            return None
        shown = self.settings.get("demonstrations", "")
        if self.base_weights is None and not shown:
            return None
        return Base(self.base_weights, self.settings.get("dtype"), self.settings.get("quantization"), shown)

    def make_optimizer(self) -> Optimizer:
        optimizer = make_optimizer(self.optimizer)
        return InPlace(optimizer) if self.lora is None else optimizer

    def changes(self, now: "Header") -> list[str]:
        """What a run began with that is another thing in `now`, in words for the user.

        What one of the two does not know, as an older journal does not, is not compared.
        """
        names = [f"{name} examples" for name in self.data if self.data[name] != now.data.get(name)]
        if self.settings is not None and now.settings is not None:
            both = (*self.settings, *now.settings)
            names += [name for name in dict.fromkeys(both) if self.settings.get(name) != now.settings.get(name)]
        for field in fields(self):
            before, after = getattr(self, field.name), getattr(now, field.name)
            if field.name == "optimizer":  # its defaults may be written out in one of them
                before, after = self.make_optimizer(), now.make_optimizer()
            known = field.name != "base_weights" or None not in (before, after)
            compared = field.name not in ("base_model", "data", "settings", "examples_version", "format")
            if known and compared and before != after:
                names.append(field.name.replace("_", " "))
        return names

    def to_json(self) -> dict[str, Any]:
        """What the line holds; a start from data stands in it by its digest."""
        if self.lora is None or self.lora.start is None:
            return asdict(self)
        value = asdict(replace(self, lora=replace(self.lora, start=None)))
        value["lora"]["start"] = self.lora.start.digest
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any], run_folder: Path) -> "Header":
        """The header that a line holds; a start from data is read from the run folder.

        Raises:
            InputError: the start is gone or has changed.
            ValueError, TypeError, KeyError, AttributeError: it holds no header.
        """
        if value["format"] not in FORMATS:
            raise ValueError(f"format {value['format']}; this zotune reads formats {' and '.join(map(str, FORMATS))}")
        lora = value.pop("lora")
        spec = None if lora is None else _spec(run_folder, lora)
        tensors = {name: tuple(shape) for name, shape in value.pop("tensors").items()}
        header = cls(**value | {"noise": Noise(**value.get("noise", {}))}, lora=spec, tensors=tensors)
        header.make_optimizer()
        return header


def looks_like_header(value: Mapping[str, Any]) -> bool:
    """Whether what a line holds is a header, also one that names what is gone or what this zotune does not know."""
    return {"seed", "base_model", "tensors", "optimizer", "format"} <= value.keys()


def _spec(run_folder: Path, lora: dict[str, Any]) -> AdapterSpec:
    start = lora.get("start")
    begun = None if start is None else Start.read(run_folder, start)
    if "num_virtual_tokens" in lora:
        return PromptSpec(**lora | {"start": begun, "modules_to_save": tuple(lora.get("modules_to_save", ()))})
    given = {
        name: _tuples(lora[name])
        for name in ("target_modules", "invocation_tokens", "matrices", "modules_to_save")
        if name in lora
    }
    selection = Selection(**{name: _tuples(value) for name, value in lora.get("selection", {}).items()})
    return LoraSpec(**lora | given | {"start": begun, "selection": selection})


def _tuples(value: Any) -> Any:
    """With tuples where JSON has lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
