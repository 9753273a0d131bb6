"""The adapter at any step of a run, rebuilt from its folder; after full-parameter training, the model."""

import shutil
import tempfile
from pathlib import Path

from zotune.adapter.peft_files import save_adapter
from zotune.config.ranges import MANY
from zotune.engine.torch.loading import load_model, load_tokenizer
from zotune.engine.torch.weights import ModelWeights
from zotune.errors import InputError
from zotune.files import replace_folder
from zotune.finetune import reopen
from zotune.run.folder import RunFolder
from zotune.run.journal import Checkpointed, Entry, Header, NeedsModel, read_journal, replay
from zotune.run.rebuild import check_journal_is_whole
from zotune.values import is_whole, path_of, shown
from zotune.zo.digest import digest
from zotune.zo.protocol import Theta


def replay_run(
    run_folder: str | Path, output_dir: str | Path, step: int | None = None, trust_remote_code: bool = False
) -> int:
    """Rebuild the adapter after `step` steps (default: the last) from the run's folder. Returns the step.

    No model is loaded, but in two cases. After full-parameter training, the base model is moved as the run moved it.
    And a run that learned by gradients is replayed from its nearest checkpoint: the steps between are computed again.

    Raises:
        InputError: no or a damaged journal, a step it does not hold, or an output folder that exists.
    """
    folder, output = RunFolder(Path(path_of(run_folder, "run_folder"))), Path(path_of(output_dir, "--output-dir"))
    if step is not None and not (is_whole(step) and abs(step) <= MANY):
        raise InputError(f"--step: expected a whole number up to {MANY:,}, got {shown(step)}")
    header, entries = read_journal(folder.journal)
    check_journal_is_whole(folder, entries)
    step = len(entries) if step is None else step
    if not 0 <= step <= len(entries):
        raise InputError(f"--step: {run_folder} holds steps 0 to {len(entries)}, got {step}")
    RunFolder(output).check_free(overwrite=False)
    try:
        if header.lora is None:
            _replay_model(header, entries[:step], folder, output, trust_remote_code)
            return step
        try:
            theta, _ = replay(header, entries[:step], checkpoints=folder.checkpoints)
        except NeedsModel:
            theta = _computed_again(folder, entries[step - 1], trust_remote_code)
        lora = header.lora
        replace_folder(output, lambda new: save_adapter(new, theta, lora, header.base_model, header.base))
    except OSError as error:
        raise InputError(f"--output-dir: cannot write {output_dir}: {error.strerror}") from error
    return step


def _replay_model(header: Header, entries: list[Entry], folder: RunFolder, output: Path, trust: bool) -> None:
    assert header.dtype is not None
    num_labels = (header.settings or {}).get("num_labels")
    model = load_model(header.base_model, header.dtype, "cpu", trust, num_labels=num_labels, head_seed=header.seed)
    weights = ModelWeights(model)
    if weights.shapes != header.tensors:
        raise InputError(f"{folder.path}: {header.base_model} is not the model that the run began with")
    replay(header, entries, weights)
    weights.save(output, load_tokenizer(header.base_model, trust))


def _computed_again(folder: RunFolder, entry: Entry, trust: bool) -> Theta:
    """Theta after a step between checkpoints, by training from the one before in a copy of the run.

    Raises:
        InputError: this machine does not compute the bits that the run had.
    """
    with tempfile.TemporaryDirectory() as place:
        copy = RunFolder(Path(place) / "run")
        copy.path.mkdir()
        for path in folder.path.glob("*.*"):
            if path.is_file() and path not in (folder.journal, folder.metrics, folder.summary):
                shutil.copy(path, copy.path)
        shutil.copytree(folder.checkpoints, copy.checkpoints)
        lines = folder.journal.read_bytes().splitlines(keepends=True)
        copy.journal.write_bytes(b"".join(lines[: entry.step + 1]))
        with reopen(copy.path, trust_remote_code=trust) as trainer:
            while trainer.step < entry.step:
                trainer.train_step()
            theta = trainer.theta
    if entry.update != Checkpointed(digest(theta)):
        raise InputError(
            f"--step {entry.step}: the steps after the nearest checkpoint cannot be computed again to the bit on this "
            f"machine; the steps with a checkpoint are in {folder.checkpoints}"
        )
    return theta
