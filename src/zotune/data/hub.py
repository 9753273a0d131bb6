"""The rows of a HuggingFace data set, by its id on the hub or its folder, each with its place."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zotune.data.class_names import class_names, named
from zotune.errors import InputError

EVALUATION_SPLITS = ("test", "validation", "valid", "dev")  # names of what is not for training, in order of preference


def read_folder(path: Path, option: str, split: str, configuration: str | None = None) -> Iterator[tuple[Any, str]]:
    """(row, place) pairs of a folder: one that `datasets` saved, or one of data files that it can load."""
    import datasets

    if not ((path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file()):
        return read_hub(str(path), option, split, configuration=configuration)
    if configuration is not None:
        raise InputError(f"{option}: {path} is a data set that was saved, which has no configurations; leave out "
                         f":{configuration}")  # fmt: skip
    with _explained(str(path), option):
        loaded = datasets.load_from_disk(str(path))
    return _rows(loaded, str(path), option, split)


def read_hub(
    source: str, option: str, split: str, revision: str | None = None, configuration: str | None = None
) -> Iterator[tuple[Any, str]]:
    """(row, place) pairs of a data set of the hub.

    Raises:
        InputError: the data set cannot be loaded, has no such split, or has several configurations and none is named.
    """
    import datasets

    datasets.disable_progress_bars()
    with _explained(source, option):
        try:
            loaded = datasets.load_dataset(source, configuration, revision=revision)
        except ValueError as error:
            names = datasets.get_dataset_config_names(source, revision=revision)
            if configuration is None and "Config name is missing" in str(error):
                raise InputError(
                    f"{option}: {source} has several configurations: {', '.join(names)}; name one, such as "
                    f"{source}:{names[0]}"
                ) from error
            if configuration is not None and configuration not in names:
                raise InputError(
                    f"{option}: {source} has no configuration {configuration!r}; it has {', '.join(names)}"
                ) from error
            raise
    return _rows(loaded, source if configuration is None else f"{source}:{configuration}", option, split)


def _rows(loaded: Any, source: str, option: str, split: str) -> Iterator[tuple[Any, str]]:
    """The rows of a data set, or of its `split`; of the only one, where it has just one."""
    if isinstance(loaded, Mapping):
        wanted = (split, *EVALUATION_SPLITS) if split in EVALUATION_SPLITS else (split,)
        found = [name for name in wanted if name in loaded] or (list(loaded) if len(loaded) == 1 else [])
        if not found:
            raise InputError(
                f"{option}: {source} has no split {split!r} (it has {', '.join(loaded)}); "
                "save the one you mean as a file, and name that"
            )
        loaded = loaded[found[0]]
    names = class_names(loaded.features)
    return ((named(row, names), f"{source}[{index}]") for index, row in enumerate(loaded))


@contextmanager
def _explained(source: str, option: str) -> Iterator[None]:
    """Turns what the library raises for a wrong, damaged or unreachable data set into one sentence."""
    import datasets

    level = datasets.utils.logging.get_verbosity()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)  # what it would say is in the sentence
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # it raises many kinds, also its dependencies' own
        reason = str(error.__cause__ or error).strip() or type(error).__name__
        where = "" if Path(source).exists() else "no such file or folder, and as a data set of the hub: "
        raise InputError(f"{option}: {source!r} could not be loaded: {where}{reason.splitlines()[0]}") from error
    finally:
        datasets.utils.logging.set_verbosity(level)
