"""zotune.json in an adapter folder: which base weights the adapter was trained on, and the demonstrations that stood
before its prompts. Others ignore it.

A digest is that of the weights as they were loaded, so it is compared only where they are loaded in the same dtype and
with the same quantisation.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

BASE_FILE = "zotune.json"


@dataclass(frozen=True)
class Base:
    """`weights` is a digest, see `Engine.identity`; None where the engine does not know it.

    `demonstrations` is a text that stood before every prompt; "": none did.
    """

    weights: str | None
    dtype: str | None
    quantization: str | None
    demonstrations: str = ""

    def differs(self, other: "Base") -> bool:
        """Whether the two are known to be other weights."""
        loaded_alike = (self.dtype, self.quantization) == (other.dtype, other.quantization)
        return loaded_alike and None not in (self.weights, other.weights) and self.weights != other.weights

    def to_json(self) -> bytes:
        base = asdict(self)
        shown = base.pop("demonstrations")
        value = {"base": base} | ({"demonstrations": shown} if shown else {})
        return (json.dumps(value, indent=2) + "\n").encode()


def read_base(adapter: Path) -> Base | None:
    """The base that an adapter folder names; None where it names none."""
    try:
        value = json.loads((adapter / BASE_FILE).read_bytes())
        return Base(**value["base"], demonstrations=str(value.get("demonstrations", "")))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
