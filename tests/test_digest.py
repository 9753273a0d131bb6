"""What a journal knows examples by: the digests of before stay what they were, and a new field changes none."""

import json
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest

from tests import golden
from tests.test_golden import stopped_run
from zotune.assemble.data import load_data
from zotune.assemble.model import find_model
from zotune.assemble.parts import assemble
from zotune.config.reading import read_run_config
from zotune.data.digest import EXAMPLES_VERSION, FIELDS, examples_digest
from zotune.zo.protocol import Example

VERSIONS = pytest.mark.parametrize("version", [1, EXAMPLES_VERSION])
EXAMPLES = [Example((5, 6), (7,), ((8,), (9, 10)), 1), Example((), (), ((3, 4),), None)]


@dataclass(frozen=True)
class Wider:
    """An example as a later zotune may have it."""

    prompt: tuple[int, ...]
    images: tuple[bytes, ...] = field(default=(b"of a later zotune",), kw_only=True)
    invocation: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    label: int | None


@pytest.mark.parametrize("row", ["defaults", "prompt_tuning"])
def test_version_1_gives_the_digests_of_journals_of_before(row, tmp_path):
    golden.make_places(tmp_path)
    run = stopped_run(row, tmp_path, tmp_path / "run")
    config = read_run_config(run / "config.toml")
    parts = assemble(config, load_data(config), find_model(config))
    parts.engine.close()
    header = json.loads((golden.FOLDER / "stopped" / row / "journal.jsonl").read_text().partition("\n")[0])
    assert parts.digests(version=1) == header["data"]
    assert parts.digests(EXAMPLES_VERSION) != header["data"]


@VERSIONS
def test_digests_of_known_examples(version):
    """Recorded once: a change here is a change for every run that is to be resumed."""
    known = {
        1: "f5c8344c8e783441328a307368dac0a1fee01436077f79314a2891d1c27c452c",
        2: "98512733a1cf2134e5ff8528c3503937f2b80df19ec9967c82a448664872c491",
    }
    assert examples_digest(EXAMPLES, version) == known[version]


@VERSIONS
def test_a_new_field_changes_no_digest(version):
    wider: list[Any] = [Wider(*(getattr(example, name) for name in FIELDS)) for example in EXAMPLES]
    assert examples_digest(wider, version) == examples_digest(EXAMPLES, version)


@VERSIONS
def test_columns_change_no_digest(version):
    assert "columns" in [one.name for one in fields(Example)]
    with_columns = [replace(example, columns={"answer": "4"}) for example in EXAMPLES]
    assert examples_digest(with_columns, version) == examples_digest(EXAMPLES, version)


@VERSIONS
@pytest.mark.parametrize("change", [
    {"prompt": (5,)}, {"invocation": ()}, {"candidates": ((8,),)}, {"label": None}, {"label": 0},
    {"prompt": (5, 6, 7), "invocation": ()},
])  # fmt: skip
def test_what_decides_the_numbers_changes_it(version, change):
    values = {name: getattr(EXAMPLES[0], name) for name in FIELDS}
    changed = [Example(**values | change), EXAMPLES[1]]
    assert examples_digest(changed, version) != examples_digest(EXAMPLES, version)
    assert examples_digest(EXAMPLES[::-1], version) != examples_digest(EXAMPLES, version)
    assert examples_digest(EXAMPLES[:1], version) != examples_digest(EXAMPLES, version)
