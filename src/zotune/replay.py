"""The adapter at any step of a run, rebuilt from its folder; after full-parameter training, the model."""

from pathlib import Path

from zotune.adapter.peft_files import save_adapter
from zotune.engine.torch.loading import load_model, load_tokenizer
from zotune.engine.torch.weights import ModelWeights
from zotune.errors import InputError
from zotune.run.folder import RunFolder
from zotune.run.journal import Entry, Header, read_journal, replay


def replay_run(
    run_folder: str | Path, output_dir: str | Path, step: int | None = None, trust_remote_code: bool = False
) -> int:
    """Rebuild the adapter after `step` steps (default: the last) from the journal. Returns the step.

    It loads no model but after full-parameter training, which has changed one: that is what it rebuilds then.

    Raises:
        InputError: no or a damaged journal, a step it does not hold, or an output folder that exists.
    """
    header, entries = read_journal(RunFolder(Path(run_folder)).journal)
    step = len(entries) if step is None else step
    if not 0 <= step <= len(entries):
        raise InputError(f"--step: {run_folder} holds steps 0 to {len(entries)}, got {step}")
    RunFolder(Path(output_dir)).check_free(overwrite=False)
    try:
        if header.lora is None:
            _replay_model(header, entries[:step], Path(run_folder), Path(output_dir), trust_remote_code)
        else:
            theta, _ = replay(header, entries[:step])
            save_adapter(Path(output_dir), theta, header.lora, header.base_model)
    except OSError as error:
        raise InputError(f"--output-dir: cannot write {output_dir}: {error.strerror}") from error
    return step


def _replay_model(header: Header, entries: list[Entry], run_folder: Path, output_dir: Path, trust: bool) -> None:
    assert header.dtype is not None
    model = load_model(header.base_model, header.dtype, "cpu", trust)
    weights = ModelWeights(model)
    if weights.shapes != header.tensors:
        raise InputError(f"{run_folder}: {header.base_model} is not the model that the run began with")
    replay(header, entries, weights)
    weights.save(output_dir, load_tokenizer(header.base_model, trust))
