"""Which function a reward is: a built-in by its name, one in a file or a module, or one that is given from Python.

Code of the user's is loaded by `load` alone, in the process that runs it, and never because something was looked up.
"""

import importlib
import importlib.util
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from zotune.errors import InputError, first_line
from zotune.rewards.builtin import BUILTINS, RewardFunction, make_builtin
from zotune.values import shown

_IN_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_OF_THE_SCRIPT = re.compile(rb"__(mp_)?main__")


@dataclass(frozen=True)
class Source:
    """Where a reward comes from.

    `portable` is what another process loads it by, a name or what `pickle` made of a function; None: it runs in this
    process. `function` is what can run in this one; None: only its own process loads it.
    """

    name: str
    kind: Literal["built-in", "user code", "given"]
    portable: str | bytes | None
    function: RewardFunction | None


def source_of(given: Any) -> Source:
    """What a user named or gave, checked as far as that goes without running it.

    Raises:
        InputError: it is no reward, with what is.
    """
    if isinstance(given, str):
        return _named(given)
    if isinstance(given, type) or not callable(given):
        raise InputError(f"reward_funcs: expected functions or their names, got {shown(given)}")
    if hasattr(given, "forward") and hasattr(given, "parameters"):
        raise InputError(f"reward_funcs: {type(given).__name__} is a model; give a function that asks it for rewards")
    return Source(getattr(given, "__name__", type(given).__name__), "given", _pickled(given), given)


def is_builtin(name: str) -> bool:
    """Whether a name is that of a built-in reward, which runs no code of the user's."""
    return name.partition(":")[0] in BUILTINS


def full_name(given: Any) -> str:
    """A name that means the same wherever it is read: a file with its whole path; of a function from Python, what it is
    called, with parentheses."""
    if not isinstance(given, str):
        return f"{getattr(given, '__name__', type(given).__name__)}()"
    place, _, function = given.rpartition(":")
    return f"{Path(place).expanduser().resolve()}:{function}" if place.endswith(".py") else given


def load(portable: str | bytes) -> RewardFunction:
    """The function itself. This runs the user's code where the name is not that of a built-in.

    Raises:
        InputError: there is no such function, or its file or module cannot be loaded.
    """
    if isinstance(portable, bytes):
        try:
            return pickle.loads(portable)
        except Exception as error:
            raise InputError(f"cannot be loaded in another process: {_said(error)}") from error
    if is_builtin(portable):
        return make_builtin(portable)
    place, _, name = portable.rpartition(":")
    try:
        module = _run_file(Path(place).expanduser()) if place.endswith(".py") else _module(place)
    except Exception as error:
        raise InputError(f"cannot be loaded: {_said(error)}") from error
    if not hasattr(module, name):
        close = get_close_matches(name, dir(module), 1)
        raise InputError(f"cannot be loaded: {place} has no {name}" + (f"; do you mean {close[0]}?" if close else ""))
    function: Callable[..., Any] = getattr(module, name)
    if isinstance(function, type) or not callable(function):
        raise InputError(f"cannot be loaded: {name} in {place} is no function, but {shown(function)}")
    return function


def _named(name: str) -> Source:
    kind = name.partition(":")[0]
    if kind in BUILTINS:
        function = make_builtin(name)  # also where it runs elsewhere: now is the time to say what is wrong with it
        return (
            Source(name, "built-in", name, None)
            if BUILTINS[kind].may_hang
            else Source(name, "built-in", None, function)
        )
    place = name.rpartition(":")[0]
    if place.endswith(".py"):
        if not Path(place).expanduser().is_file():
            raise InputError(f"--reward: {name}: there is no file {place}")
        return Source(name, "user code", name, None)
    if _IN_MODULE.fullmatch(name):
        return Source(name, "user code", name, None)
    close = get_close_matches(kind, BUILTINS, 1)
    raise InputError(
        f"--reward: expected FILE.py:function, package.module:function or one of {', '.join(BUILTINS)}, "
        f"got {shown(name)}" + (f"; do you mean {close[0]}?" if close else "")
    )


def _run_file(path: Path) -> Any:
    """The module of a file, which finds its neighbours as it would if it were run."""
    path = path.resolve()
    sys.path.insert(0, str(path.parent))
    name = f"reward_file_{path.stem}"  # of its own: the file may be called json.py
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def _module(name: str) -> Any:
    """A module that is installed, or lies where the command was started, as `python -m` finds it."""
    sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def _pickled(function: RewardFunction) -> bytes | None:
    """What another process can load the function by.

    A function of the script that runs is none: to load it, the script would be run once more in that process.
    """
    try:
        pickled = pickle.dumps(function)
    except Exception:  # whatever the objects inside raise
        return None
    return None if _OF_THE_SCRIPT.search(pickled) else pickled


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
