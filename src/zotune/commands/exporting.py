"""What comes out of a run, in the forms that others take: `merge` and `export`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from zotune.config.fields import Dtype

if TYPE_CHECKING:
    from zotune.export.source import Source


@dataclass(frozen=True)
class Exported:
    """What merge and export share."""

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run folder, whose last adapter is taken, or an adapter folder, such as RUN/best."""

    model: str | None = None
    """The base model: hub id, local folder or GGUF file. Default: the one that the run, or the adapter, names."""

    trust_remote_code: bool = False
    """Run Python code that comes with a model from the hub. Only for models whose code you have read."""


@dataclass(frozen=True, kw_only=True)
class Merge(Exported):
    """Put an adapter into the weights of its base model, as a folder of transformers.

    The folder is read back, and its scores on a few texts are compared with those of the adapter. An activated adapter
    cannot be merged, since it leaves the prompt to the base model.
    """

    output_dir: Annotated[str, tyro.conf.arg(aliases=("--output",))]
    """Where to write the model; must not exist."""

    dtype: Dtype = "float32"
    """The precision that the weights are stored in. They are merged in float32."""

    def run(self) -> None:
        from zotune.commands.console import set_up_logging
        from zotune.export.merge import merge
        from zotune.export.source import Source

        set_up_logging()
        check = merge(Source.of(self.run_folder, self.model, self.trust_remote_code), self.output_dir, self.dtype)
        print(
            f"checked: log-probabilities differ from the adapter's by at most {check.difference:.1e} at "
            f"{check.num_places} places of four texts (the adapter changes them by up to {check.moved:.2g})"
        )
        print(f"merged model ({self.dtype}): {self.output_dir}")


@dataclass(frozen=True)
class Export(Exported):
    """Write what a run has trained for other programs: as a GGUF file, the format of llama.cpp.

    Without --merged the file holds the adapter alone, for `llama-server --lora`, beside the base model's own GGUF file.
    """

    gguf: str | None = None
    """The GGUF file to write. Needs pip install gguf."""

    merged: bool = False
    """Write the whole model, with the adapter in its weights, its tokenizer and its chat template."""

    outtype: Literal["f32", "f16", "bf16", "q8_0"] | None = None
    """The precision of the file, by llama.cpp's names. Default: f16 for a model, f32 for an adapter."""

    def run(self) -> None:
        from zotune.commands.console import set_up_logging
        from zotune.errors import InputError
        from zotune.export.source import Source

        if self.gguf is None:
            raise InputError("say what to write: --gguf FILE")
        set_up_logging()
        self._write_gguf(Source.of(self.run_folder, self.model, self.trust_remote_code), self.gguf)

    def _write_gguf(self, source: "Source", file: str) -> None:
        from zotune.export.gguf_files import write_adapter, write_model

        whole = self.merged or not source.is_adapter
        outtype = self.outtype or ("f16" if whole else "f32")
        written = (write_model if whole else write_adapter)(source, file, outtype)
        print(
            f"read back: {written.num_tensors} tensors, at most {written.difference:.1e} of a tensor's largest number "
            "away"
        )
        print(f"{'model' if whole else 'adapter'} ({outtype}): {file}")
