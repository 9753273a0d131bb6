"""The journal: the append-only record of slopes that, with the seed in its first line, is the whole run.

Line 1 holds what replay needs and no step changes (tensor shapes, form of the adapter, optimizer, noise, seed; where A
comes from the data, the digest of the file that holds it, see start.py); then a line a step with its learning rate
and slopes. `replay` rebuilds theta at any step bit for bit, with no model. Every line carries a CRC-32 and is on disk
before `append` returns. It does not hold what can be measured again: see metrics.py.
"""

import fcntl
import json
import logging
import os
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import AdapterSpec, LoraSpec, PromptSpec
from zotune.adapter.start import Start
from zotune.errors import InputError
from zotune.zo.noise import GAUSSIAN, Noise
from zotune.zo.optimizers import InPlace, Optimizer, Tensors, make_optimizer
from zotune.zo.protocol import Theta
from zotune.zo.updates import Slope, Slopes

FORMAT = 1
logger = logging.getLogger("zotune")


@dataclass(frozen=True)
class Header:
    """What a replay starts from. `data` names what the examples were, so that a resumed run can check them.

    `lora` is the form of the adapter, also of a soft prompt. Without it theta is the base model's own parameters, in
    `dtype`, and a replay needs those.
    """

    seed: int
    base_model: str
    tensors: Mapping[str, tuple[int, ...]]
    lora: AdapterSpec | None
    optimizer: Mapping[str, Any]  # {"name": a key of OPTIMIZERS, and its arguments}
    data: Mapping[str, str]
    noise: Noise = GAUSSIAN
    dtype: str | None = None
    format: int = FORMAT

    def make_optimizer(self) -> Optimizer:
        optimizer = make_optimizer(self.optimizer)
        return InPlace(optimizer) if self.lora is None else optimizer


@dataclass(frozen=True)
class Entry:
    """One step: `step` counts from 1, `loss` is the mean over the step's probes and examples."""

    step: int
    loss: float
    learning_rate: float
    update: Slopes

    @property
    def slopes(self) -> tuple[Slope, ...]:
        return self.update.values


class Journal:
    """An open journal, locked against other writers until `close`."""

    def __init__(self, path: Path, valid_bytes: int) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        try:
            _lock(self._file, path)
        except InputError:
            self._file.close()
            raise
        self._file.truncate(valid_bytes)
        self._size = valid_bytes

    @classmethod
    def create(cls, path: Path, header: Header) -> "Journal":
        journal = cls(path, valid_bytes=0)
        value = asdict(header)
        if header.lora and header.lora.start:
            header.lora.start.write(path.parent)
            value["lora"]["start"] = header.lora.start.digest
        journal._write(value)
        return journal

    @classmethod
    def reopen(cls, path: Path) -> "tuple[Journal, Header, list[Entry]]":
        """Go on with a journal: its header, its entries, and the file ready for the next one."""
        header, entries, valid_bytes = _parse(path)
        return cls(path, valid_bytes), header, entries

    @staticmethod
    def check_unused(path: Path) -> None:
        """Refuse a journal that a running process holds."""
        with path.open("rb") as file:
            _lock(file, path)

    def append(self, entry: Entry) -> None:
        """Write one step; it is on disk when this returns.

        Raises:
            OSError: the disk refused; what was written before stays whole.
        """
        self._write(
            {
                "step": entry.step,
                "loss": entry.loss,
                "learning_rate": entry.learning_rate,
                "slopes": [_plain(slope) for slope in entry.slopes],
            }
        )

    def close(self) -> None:
        self._file.close()

    def _write(self, value: dict[str, Any]) -> None:
        line = _encode(value) + b"\n"
        try:
            written = self._file.write(line)
            if written != len(line):  # a disk that fills up takes a part and refuses the rest
                self._file.write(line[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(self._size)
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._size += len(line)


def read_journal(path: Path) -> tuple[Header, list[Entry]]:
    """Header and entries of a journal. A last line cut short is dropped with a warning.

    Raises:
        InputError: no journal there, or any other damage, with the number of the line.
    """
    header, entries, _ = _parse(path)
    return header, entries


def replay(header: Header, entries: Sequence[Entry], start: Theta | None = None) -> tuple[Theta, Tensors]:
    """Theta and the optimizer's state after `entries`, the same bits as in the run that wrote them."""
    (last,) = deque(history(header, entries, start), maxlen=1)
    return last


def history(header: Header, entries: Sequence[Entry], start: Theta | None = None) -> Iterator[tuple[Theta, Tensors]]:
    """Theta and the optimizer's state before each of `entries`, and after the last.

    Args:
        start: the base model's parameters, which are moved, where the header has no `lora`.
    """
    optimizer = header.make_optimizer()
    theta: Theta = initial_theta(header.tensors, header.seed, header.lora) if start is None else start
    state = optimizer.init(theta)
    yield theta, state
    for entry in entries:
        theta, state = optimizer.update(theta, state, entry.update, entry.learning_rate)
        yield theta, state


def _plain(slope: Slope) -> list[float | None]:
    """A slope as JSON: seed, value, and what was measured beside them; the noise is the header's."""
    values = [slope.seed, slope.value, slope.curvature, slope.rounding]
    while values[-1] is None:
        values.pop()
    return values


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(f"{path.parent} is in use by another zotune process") from error


def _parse(path: Path) -> tuple[Header, list[Entry], int]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path.parent} is not a run folder: cannot read {path.name} ({error.strerror})") from error
    *lines, rest = content.split(b"\n")
    if rest:
        logger.warning("%s: line %d was cut short; dropped", path, len(lines) + 1)
    if not lines:
        raise InputError(f"{path}: line 1: the journal is empty")
    header = _header(path, lines[0])
    entries = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            value = _decode(line)
            noise = header.noise.at(header.seed, number - 2)
            slopes = tuple(_slope(noise, *values) for values in value.pop("slopes"))
            entry = Entry(**value, update=Slopes(slopes))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: line {number} is damaged: {error}") from error
        if entry.step != number - 1:
            raise InputError(f"{path}: line {number} is step {entry.step}, expected step {number - 1}")
        entries.append(entry)
    return header, entries, len(content) - len(rest)


def _slope(noise: Noise, seed: int, value: float, *measured: float | None) -> Slope:
    return Slope(int(seed), float(value), noise, *(None if number is None else float(number) for number in measured))


def _header(path: Path, line: bytes) -> Header:
    try:
        value = _decode(line)
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']}; this zotune reads format {FORMAT}")
        lora = value.pop("lora")
        spec = None if lora is None else PromptSpec(**lora) if "num_virtual_tokens" in lora else _spec(path, **lora)
        tensors = {name: tuple(shape) for name, shape in value.pop("tensors").items()}
        header = Header(**value | {"noise": Noise(**value.get("noise", {}))}, lora=spec, tensors=tensors)
        header.make_optimizer()
        return header
    except InputError:  # of the file that the line names
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: line 1 is damaged: {error}") from error


def _spec(
    path: Path, target_modules: Any, invocation_tokens: Any, matrices: Any = (), start: Any = None, **rest: Any
) -> LoraSpec:
    return LoraSpec(
        target_modules=tuple(target_modules),
        invocation_tokens=None if invocation_tokens is None else tuple(invocation_tokens),
        matrices=tuple((name, tuple(shape)) for name, shape in matrices),
        start=None if start is None else Start.read(path.parent, start),
        **rest,
    )


def _decode(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError("not JSON") from error
    if not isinstance(value, dict) or "crc32" not in value:
        raise ValueError("it has no checksum")
    del value["crc32"]
    if _encode(value) != line:  # also where other bytes mean the same, such as another space
        raise ValueError("its checksum does not match")
    return value


def _encode(value: dict[str, Any]) -> bytes:
    """A line without its end."""
    text = json.dumps(value, allow_nan=False)
    return f'{text[:-1]}, "crc32": {zlib.crc32(text.encode())}}}'.encode()
