"""Which SGLang this is written for, and whether what is installed is that one.

SGLang's inside changes from release to release. Each file of this folder lists the names it touches, as
"module:attribute.attribute"; `check` looks them up before anything starts, so that another version, or a name that
moved, is one sentence to the user and not a traceback from inside.
"""

import importlib.util
import logging
import pkgutil
import warnings
from collections.abc import Iterable
from importlib import metadata

from zotune.errors import InputError

VERSIONS = ("0.5.23",)  # the releases that the tests were run against
INSTALL = 'pip install "zotune[sglang]"'


def installed_version() -> str | None:
    """SGLang's version, or None where it is not installed. Imports nothing of it."""
    if importlib.util.find_spec("sglang") is None:
        return None
    try:
        return metadata.version("sglang")
    except metadata.PackageNotFoundError:
        return "unknown"


def check(names: Iterable[str] = ()) -> None:
    """Look up the version and then `names`, which imports their modules.

    Raises:
        InputError: SGLang is absent, of another version, or lacks a name.
    """
    version = installed_version()
    if version is None:
        raise InputError(f"--engine sglang: SGLang is not installed; {INSTALL}, in an environment of its own")
    if version not in VERSIONS:
        raise InputError(
            f"--engine sglang: SGLang {version} is installed, but zotune works with {' and '.join(VERSIONS)}; {INSTALL}"
        )
    for name in names:
        if (reason := _missing(name)) is not None:
            raise InputError(
                f"--engine sglang: SGLang {version} is installed but {name.replace(':', '.')} is not as zotune knows "
                f"it ({reason}); reinstall it: {INSTALL}"
            )


def _missing(name: str) -> str | None:
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # what SGLang's optional imports say on a machine that lacks them
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pkgutil.resolve_name(name)
    except AttributeError:
        return "it is not there"
    except Exception as error:  # an import can fail in any way, and each is the same news to the user
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
    finally:
        logging.disable(level)
    return None
