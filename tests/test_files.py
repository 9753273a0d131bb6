"""Files are written whole: nothing that goes wrong on the way leaves half of one, or another's permissions."""

import os
import stat
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import make_model, make_tokenizer
from zotune.adapter.peft_files import save_adapter
from zotune.adapter.spec import LoraSpec
from zotune.engine.torch.weights import ModelWeights
from zotune.files import LineFile, make_folder, replace_folder, write_together, write_whole

TENSORS = {"a": np.arange(600, dtype=np.float32)}


@pytest.fixture(params=[0o022, 0o027], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", [b"text", partial(save_file, TENSORS)], ids=["bytes", "a library"])
def test_permissions_are_those_of_any_new_file(tmp_path, umask, content):
    write_whole(tmp_path / "file", content)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask
    assert names(tmp_path) == ["file"]


def test_permissions_in_a_folder_are_those_of_any_new_file(tmp_path, umask):
    replace_folder(tmp_path / "model", lambda folder: save_file(TENSORS, folder / "weights"))
    assert stat.S_IMODE((tmp_path / "model" / "weights").stat().st_mode) == 0o666 & ~umask
    assert names(tmp_path / "model") == ["weights"]


def test_a_file_takes_the_place_of_another_and_of_what_a_crash_left(tmp_path):
    (tmp_path / "file").write_text("a longer text than the next")
    (tmp_path / "file.new").write_text("torn")
    write_whole(tmp_path / "file", b"next")
    assert (tmp_path / "file").read_bytes() == b"next"
    assert names(tmp_path) == ["file"]


def test_files_of_one_folder_take_their_places_together(tmp_path):
    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    write_together(tmp_path / "to" / "folder", {"a": b"1", "b": b"2"})
    with pytest.raises(OSError, match="No space left on device") as error:
        write_together(tmp_path / "to" / "folder", {"a": b"3", "b": fail})
    assert error.value.filename == str(tmp_path / "to" / "folder" / "b")
    assert [(tmp_path / "to" / "folder" / name).read_bytes() for name in "ab"] == [b"1", b"2"]
    assert names(tmp_path / "to" / "folder") == ["a", "b"]


def test_a_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / "model"
    replace_folder(folder, lambda new: (new / "old").write_text("old"))
    for left in ("model.new", "model.old"):  # of a crash
        (tmp_path / left).mkdir()
        (tmp_path / left / "torn").write_text("")
    replace_folder(folder, lambda new: (new / "next").write_text("next"))
    assert names(folder) == ["next"]
    assert names(tmp_path) == ["model"]


def test_a_folder_whose_replacement_was_cut_short_is_not_lost(tmp_path):
    (tmp_path / "model.old").mkdir()
    (tmp_path / "model.old" / "old").write_text("old")

    def fail(new: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_folder(tmp_path / "model", fail)
    assert names(tmp_path / "model") == ["old"]
    assert names(tmp_path) == ["model"]


def test_a_folder_that_cannot_be_written_leaves_the_old_one(tmp_path):
    folder = tmp_path / "model"
    replace_folder(folder, lambda new: (new / "old").write_text("old"))

    def fail(new: Path) -> None:
        (new / "next").write_text("half")
        raise RuntimeError("I/O error: File too large (os error 27)")  # as safetensors has it

    with pytest.raises(OSError, match="File too large") as error:
        replace_folder(folder, fail)
    assert (error.value.errno, error.value.filename) == (27, str(folder))
    assert names(folder) == ["old"]
    assert names(tmp_path) == ["model"]


def test_a_folder_that_cannot_take_its_place_gives_it_back(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    replace_folder(folder, lambda new: (new / "old").write_text("old"))
    real_rename = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.name == "model.new":
            raise OSError(5, "Input/output error")
        return real_rename(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output error"):
        replace_folder(folder, lambda new: (new / "next").write_text("next"))
    assert names(folder) == ["old"]
    assert names(tmp_path) == ["model"]


@pytest.fixture(scope="module", params=["adapter", "model"])
def export(request):
    """A function that writes an adapter or a model at a path, and the main file of it."""
    if request.param == "adapter":
        theta = {f"m.{name}.weight": np.ones((2, 2), dtype=np.float32) for name in ("lora_A", "lora_B")}
        return lambda path: save_adapter(path, theta, LoraSpec(2, 4.0, ("m",)), "a/b"), "adapter_model.safetensors"
    weights = ModelWeights(make_model("opt"))
    return lambda path: weights.save(path, make_tokenizer()), "model.safetensors"


def test_exports_have_the_permissions_of_any_new_file_and_leave_nothing_beside(tmp_path, umask, export):
    save, main = export
    for left in ("best.new", "best.old"):  # of a crash
        (tmp_path / left).mkdir()
    for _ in range(2):
        save(tmp_path / "best")
    if main == "model.safetensors":
        assert names(tmp_path) == ["best"]
    files = names(tmp_path / "best")
    assert main in files
    assert not [name for name in files if name.endswith(".new")]
    for name in files:
        assert stat.S_IMODE((tmp_path / "best" / name).stat().st_mode) == 0o666 & ~umask, name


def test_an_export_that_the_disk_refuses_leaves_the_one_before(tmp_path, monkeypatch, export):
    save, _ = export
    save(tmp_path / "best")
    before = {path.name: path.read_bytes() for path in (tmp_path / "best").iterdir()}
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left") as error:
        save(tmp_path / "best")
    assert error.value.filename.startswith(str(tmp_path / "best"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "best").iterdir()} == before


def refuse(opened: int) -> None:
    raise OSError(28, "No space left on device")


def test_what_is_no_file_is_written_to(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_whole(tmp_path / "link", b"1")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"1"
    done = subprocess.run(
        [sys.executable, "-c",
         "from pathlib import Path; from zotune.files import *; write_whole(Path('/dev/stdout'), b'x')"],
        capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout == b"x"


@pytest.mark.parametrize("content", ["b'x' * 3000", "functools.partial(save_file, tensors)"])
def test_a_full_disk_leaves_the_file_that_was_there_and_is_named(tmp_path, content):
    """A file size limit makes the kernel take part of a file and refuse the rest, as a full disk does."""
    path = tmp_path / "file"
    save_file({"a": TENSORS["a"][:10]}, path)
    script = textwrap.dedent(f"""
        import functools, resource, signal, sys
        from pathlib import Path
        import numpy as np
        from safetensors.numpy import save_file
        from zotune.files import write_whole
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        tensors = {{"a": np.zeros(600, dtype=np.float32)}}
        try:
            write_whole(Path({str(path)!r}), {content})
        except OSError as error:
            print(error.errno, error.strerror, error.filename, sep=", ")
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"27, File too large, {path}\n"
    np.testing.assert_array_equal(load_file(path)["a"], TENSORS["a"][:10])
    assert names(tmp_path) == ["file"]


def test_another_exception_is_not_taken_for_the_disks(tmp_path):
    def fail(path: Path) -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        write_whole(tmp_path / "file", fail)
    assert names(tmp_path) == []


def test_everything_that_is_renamed_was_on_disk_and_so_is_the_folder_after(tmp_path, monkeypatch):
    """The order in which the system is asked: file, name, folder; and each folder above one that is made."""
    asked: list[tuple[str, str]] = []
    real_sync, real_replace, real_mkdir = os.fsync, Path.replace, Path.mkdir

    def sync(opened: int) -> None:
        asked.append(("sync", Path(f"/proc/self/fd/{opened}").readlink().name))
        real_sync(opened)

    def replace(path: Path, target: Path) -> Path:
        asked.append(("rename", path.name))
        return real_replace(path, target)

    def mkdir(path: Path) -> None:
        asked.append(("make", path.name))
        real_mkdir(path)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(Path, "mkdir", mkdir)
    write_together(tmp_path / "a" / "b", {"file": b"1", "other": partial(save_file, TENSORS)})
    assert asked == [
        ("make", "a"), ("sync", tmp_path.name), ("make", "b"), ("sync", "a"),
        ("sync", "file.new"), ("sync", "other.new"), ("rename", "file.new"), ("rename", "other.new"), ("sync", "b"),
    ]  # fmt: skip


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("kept")
    make_folder(tmp_path)
    assert names(tmp_path) == ["file"]


def test_lines_that_the_disk_refuses_are_taken_back(tmp_path):
    path = tmp_path / "lines"
    path.write_text("first\n")
    script = textwrap.dedent(f"""
        import resource, signal
        from pathlib import Path
        from zotune.files import LineFile
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
        with LineFile(Path({str(path)!r})) as lines:
            lines.append(b"second\\n")
            try:
                lines.append(b"too long a line\\n")
            except OSError as error:
                print(error.filename)
            lines.append(b"third\\n")
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}\n"
    assert path.read_text() == "first\nsecond\nthird\n"


def test_lines_are_appended_where_the_file_was_cut(tmp_path):
    path = tmp_path / "lines"
    path.write_text("first\nsecond\n")
    with LineFile(path) as lines:
        assert lines.read() == b"first\nsecond\n"
        lines.cut(6)
        lines.append(b"2\n", durable=False)
        assert path.read_text() == "first\n2\n"
    with pytest.raises(FileNotFoundError):
        LineFile(tmp_path / "none")
