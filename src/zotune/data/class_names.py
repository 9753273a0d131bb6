"""Labels that a data set knows by name: a class is stored as a number, and its names apart.

HuggingFace datasets and the parquet files that it writes do so. The number says little without the names, so a record
has the name, as if the data held it.
"""

import json
from collections.abc import Mapping
from operator import index
from typing import Any

ClassNames = Mapping[str, tuple[str, ...]]
"""The names of the classes of each field that has classes."""


class ClassName(str):
    """The name of a class, which also knows the names of all classes of its field."""

    names: tuple[str, ...]

    def __new__(cls, names: tuple[str, ...], number: int) -> "ClassName":
        name = super().__new__(cls, names[number])
        name.names = names
        return name


def class_names(features: Any) -> ClassNames:
    """The classes among a data set's features, as `datasets` has them or as their JSON in a parquet file."""
    if not isinstance(features, Mapping):
        return {}
    found = {}
    for field, feature in features.items():
        kind, names = (
            (feature.get("_type"), feature.get("names"))
            if isinstance(feature, Mapping)
            else (type(feature).__name__, getattr(feature, "names", None))
        )
        if kind == "ClassLabel" and names:
            found[field] = tuple(map(str, names))
    return found


def class_names_in_parquet(metadata: Mapping[bytes, bytes] | None) -> ClassNames:
    """The classes that a parquet file's own metadata tell of, where `datasets` wrote it."""
    try:
        return class_names(json.loads((metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError):
        return {}


def named(row: Any, names: ClassNames) -> Any:
    """A row with the names of its classes. A number that has none, such as -1 for a hidden label, stays."""
    if not names or not isinstance(row, Mapping):
        return row
    return {field: _named(value, names[field]) if field in names else value for field, value in row.items()}


def _named(value: Any, names: tuple[str, ...]) -> Any:
    try:
        number = index(value)  # also of NumPy and PyTorch, in whose format a data set may be
    except TypeError:
        return value
    return ClassName(names, number) if 0 <= number < len(names) else value
