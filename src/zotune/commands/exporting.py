"""What comes out of a run, in the forms that others take: `merge`, `export` and `card`."""

from dataclasses import dataclass
from pathlib import Path
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

    base_model: str | None = None
    """The base model's id on the hub, for the model card, where the run knows it as a folder."""

    trust_remote_code: bool = False
    """Run Python code that comes with a model from the hub. Only for models whose code you have read."""

    def source(self) -> "Source":
        """What is exported; the options that say so are checked first."""
        from zotune.commands.console import set_up_logging
        from zotune.export.source import Source
        from zotune.values import path_of

        for option, value in (("--model", self.model), ("--base-model", self.base_model)):
            if value is not None:
                path_of(value, option)
        set_up_logging()
        return Source.of(self.run_folder, self.model, self.trust_remote_code)


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

    push_to_hub: str | None = None
    """Also push the merged model to this repository of the HuggingFace hub, with a model card."""

    private: bool = False
    """Make the repository a private one, where it is new."""

    def run(self) -> None:
        from zotune.export.card import card
        from zotune.export.hub import check_repo, push
        from zotune.export.merge import merge
        from zotune.values import path_of

        if self.push_to_hub is not None:
            check_repo(self.push_to_hub)
        path_of(self.output_dir, "--output-dir")
        source = self.source()
        check = merge(source, self.output_dir, self.dtype)
        print(
            f"checked: log-probabilities differ from the adapter's by at most {check.difference:.1e} at "
            f"{check.num_places} places of four texts (the adapter changes them by up to {check.moved:.2g})"
        )
        print(f"merged model ({self.dtype}): {self.output_dir}")
        if self.push_to_hub is not None:
            text = card(source, self.base_model, merged=True, repo=self.push_to_hub)
            print(push(Path(self.output_dir), self.push_to_hub, {"README.md": text.encode()}, self.private))


@dataclass(frozen=True)
class Export(Exported):
    """Give what a run has trained to others: as a GGUF file, the format of llama.cpp, or on the HuggingFace hub.

    Without --merged the file holds the adapter alone, for `llama-server --lora`, beside the base model's own GGUF file.
    """

    gguf: str | None = None
    """The GGUF file to write. Needs pip install gguf."""

    merged: bool = False
    """Write the whole model, with the adapter in its weights, its tokenizer and its chat template."""

    outtype: Literal["f32", "f16", "bf16", "q8_0"] | None = None
    """The precision of the file, by llama.cpp's names. Default: f16 for a model, f32 for an adapter."""

    push_to_hub: str | None = None
    """Push the adapter to this repository of the HuggingFace hub, with a model card. HF_TOKEN, or `hf auth login`, has
    the token."""

    private: bool = False
    """Make the repository a private one, where it is new."""

    def run(self) -> None:
        from zotune.errors import InputError
        from zotune.export.hub import check_repo, push_adapter
        from zotune.values import path_of

        if self.gguf is None and self.push_to_hub is None:
            raise InputError(
                "say what to do: --gguf FILE writes a file, --push-to-hub NAME/REPOSITORY pushes to the hub"
            )
        if self.gguf is None and (self.merged or self.outtype):
            raise InputError(f"{'--merged' if self.merged else '--outtype'} has no effect without --gguf; leave it out")
        if self.push_to_hub is not None:
            check_repo(self.push_to_hub)
        if self.gguf is not None:
            path_of(self.gguf, "--gguf")
        source = self.source()
        if self.gguf is not None:
            self._write_gguf(source, self.gguf)
        if self.push_to_hub is not None:
            print(push_adapter(source, self.push_to_hub, self.base_model, self.private))

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


@dataclass(frozen=True)
class Card(Exported):
    """Print the model card of what a run has trained: README.md in the format of the HuggingFace hub."""

    output_file: str | None = None
    """Write it to this file, such as RUN/adapter/README.md, instead of printing it."""

    def run(self) -> None:
        from zotune.errors import InputError
        from zotune.export.card import card
        from zotune.files import write_whole
        from zotune.values import file_of

        path = None if self.output_file is None else file_of(self.output_file, "--output-file")
        text = card(self.source(), self.base_model)
        if path is None:
            print(text, end="")
            return
        try:
            write_whole(path, text.encode())
        except OSError as error:
            raise InputError(f"--output-file: cannot write {path}: {error.strerror}") from error
        print(path)
