"""`init`: a commented file of settings for one's own data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from zotune.errors import InputError
from zotune.values import file_of, path_of


@dataclass(frozen=True)
class Init:
    """Look at your data and write a commented file of settings, which zotune train takes."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")] = "demo"
    """The training data: whatever --train-data takes. Default: the demo's."""

    output: str = "zotune.toml"
    """The file to write."""

    overwrite: bool = False
    """Write it also where there is such a file."""

    model: str = "smollm2"
    """The model to train: whatever --model of train takes."""

    def run(self) -> None:
        file, model = file_of(self.output, "--output"), path_of(self.model, "--model")
        if file.exists() and not self.overwrite:
            raise InputError(f"--output: {file} is there; name another, or replace it with --overwrite")

        from zotune.config.run import absolute
        from zotune.data.demo import demo_path
        from zotune.files import write_whole
        from zotune.tools.first_settings import first_settings

        found = demo_path("train.jsonl") if self.source == "demo" and not Path(self.source).exists() else self.source
        text = first_settings(str(absolute(found)), model)
        write_whole(file, text.encode())
        print(text)
        print(f"written to {file}; train with: zotune train {file}")
