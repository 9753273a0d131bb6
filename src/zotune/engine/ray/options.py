"""The options of the engine itself, `--ray.NAME`; those of the engine in its workers have tables of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zotune.errors import InputError
from zotune.values import shown
from zotune.zo.setting import Setting, checked

DEFAULT_ENGINE = "torch"
DEFAULT_PIECES = 8


@dataclass(frozen=True)
class RayOptions:
    """What was asked for; None: chosen when the cluster is known.

    `pieces` is into how many pieces a call is cut, and `unequal` what is done with a worker whose scores differ.
    """

    num_workers: int | None = None
    engine: str = DEFAULT_ENGINE
    num_gpus_per_worker: float | None = None
    num_cpus_per_worker: int = 1
    address: str | None = None
    pieces: int = DEFAULT_PIECES
    unequal: str = "refuse"

    @classmethod
    def of(cls, table: Mapping[str, Any], engines: Sequence[str]) -> "RayOptions":
        """The options in the table [ray].

        Raises:
            InputError: an unknown option, with the nearest known one, or a value that is not allowed.
        """
        given = {str(name).replace("-", "_"): value for name, value in table.items()}
        address = given.pop("address", None)
        if address is not None and not (isinstance(address, str) and address):
            raise InputError(f"--ray.address must be auto, local, or HOST:PORT of a cluster, got {shown(address)}")
        return cls(address=address, **checked("ray", given, _settings(engines)))


def _settings(engines: Sequence[str]) -> dict[str, Setting]:
    return {
        "num_workers": Setting(1, "Workers.", at_least=1, at_most=65_536),
        "engine": Setting(DEFAULT_ENGINE, "The engine in each worker.", choices=tuple(engines)),
        "num_gpus_per_worker": Setting(0.0, "GPUs of a worker.", at_least=0, at_most=1024),
        "num_cpus_per_worker": Setting(1, "CPUs, and threads, of a worker.", at_least=1, at_most=4096),
        "pieces": Setting(DEFAULT_PIECES, "Pieces of a call.", at_least=1, at_most=2**20),
        "unequal": Setting("refuse", "Workers whose scores differ.", choices=("refuse", "tolerate")),
    }


def parse_value(name: str, values: list[str]) -> Any:
    """An option from the words of a command line."""
    if len(values) != 1:
        raise InputError(f"--ray.{name.replace('_', '-')} takes one value, got {' '.join(values) or 'none'}")
    (text,) = values
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
