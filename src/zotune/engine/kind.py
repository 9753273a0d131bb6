"""What the settings of a run need to know of a kind of engine, before anything heavy is imported.

A kind says which settings it cannot serve, which options are its own, and opens an engine. A new kind is a subclass in
a folder of its own and a row of `ENGINES` (engine/__init__.py): nothing outside asks for an engine by its name.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from zotune.zo.protocol import Engine, Example

Measured = Literal["eva", "lens"]

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class Settings(Protocol):
    """What a kind reads of a run's settings; `config.Config` has them."""

    @property
    def tuning(self) -> str | None: ...

    @property
    def estimator(self) -> str | None: ...

    @property
    def scope(self) -> str | None: ...

    @property
    def quantization(self) -> str | None: ...

    @property
    def kv_cache_gb(self) -> float | None: ...

    @property
    def num_threads(self) -> int | None: ...

    @property
    def device(self) -> str: ...

    @property
    def tables(self) -> Mapping[str, Mapping[str, Any]]: ...


@dataclass(frozen=True)
class EngineRequest:
    """What an engine is opened for.

    `model` is a folder or hub id and `config` its configuration, as transformers reads it; `loaded` is the model itself
    where the kind does not load it. `spec` is the form of the adapter, None for the model's own parameters. A step has
    `num_probes` probes. `options` are the kind's own. `start_from` are examples that the run starts from, where it
    needs any: `measured` says what is, LoRA's A ("eva", `engine.torch.eva`) or a lens ("lens", `engine.torch.lens`).
    `quantization` is how the model is quantised for that where the kind loads it itself, `num_labels` the labels of a
    classification head that it is to have. `tables` are the settings of every method and engine, by its name.
    """

    model: str
    config: "PretrainedConfig"
    spec: Any
    dtype: str
    device: str
    num_probes: int = 1
    trust_remote_code: bool = False
    kv_cache_gb: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    loaded: "PreTrainedModel | None" = None
    start_from: Sequence[Example] = ()
    measured: frozenset[Measured] = frozenset()
    seed: int = 0
    quantization: str | None = None
    num_labels: int | None = None
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class EngineKind(ABC):
    """A row of ENGINES."""

    loads_model: ClassVar[bool] = False
    """Whether it reads the weights itself, so that `EngineRequest.loaded` stays None."""

    has_options: ClassVar[bool] = False
    """Whether it has options of its own, in the table of its name."""

    has_lens: ClassVar[bool] = False
    """Whether it has gradients by the lens."""

    lens_reaches_all: ClassVar[bool] = False
    """Whether these are of any linear module in a block, and not only of those that write into the residual stream."""

    def check(self, settings: Settings) -> None:  # noqa: B027  # nothing to refuse is the rule
        """Refuse settings that this kind cannot serve; asked before anything is loaded.

        Raises:
            InputError: in one sentence that names the option.
        """

    def computing(self, tables: Mapping[str, Mapping[str, Any]]) -> "EngineKind":
        """The kind that computes: this one, or the one that it passes everything on to, by the tables of settings."""
        return self

    def device(self, asked: str, tables: Mapping[str, Mapping[str, Any]]) -> str:
        """Where the model runs, for --device.

        Raises:
            InputError: there is no such device.
        """
        from zotune.engine.torch.loading import choose_device

        return choose_device(asked)

    def check_options(self, options: Mapping[str, Any]) -> None:  # noqa: B027
        """Refuse options that are not this kind's own, of those that were given.

        Raises:
            InputError: in one sentence that names the option.
        """

    def check_installed(self) -> None:  # noqa: B027
        """Refuse where what it stands on is not there.

        Raises:
            InputError: says what to install.
        """

    def parse_option(self, name: str, values: list[str]) -> Any:
        """An option from the words of a command line."""
        return values[0] if len(values) == 1 else values or True

    @abstractmethod
    def open(self, request: EngineRequest) -> Engine:
        """The engine, ready to score."""
