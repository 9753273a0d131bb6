"""A folder brought to a repository of the HuggingFace hub, with its model card, in one commit.

The hub is the one that huggingface_hub is set up for: HF_ENDPOINT names another, and a token comes from HF_TOKEN or
`hf auth login`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from zotune.adapter.peft_files import CONFIG_FILE
from zotune.errors import InputError, first_line
from zotune.export.card import card, hub_name
from zotune.export.source import Source
from zotune.values import text_of


def check_repo(repo: str) -> None:
    """Refuse what is no name of a repository, before anything is made.

    Raises:
        InputError: so it is.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    text_of(repo, "--push-to-hub")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"--push-to-hub: {first_line(error)}") from error


def push_adapter(source: Source, repo: str, base_model: str | None = None, private: bool = False) -> str:
    """Push an adapter, or the model of full-parameter training, with its card. Returns the address.

    Raises:
        InputError: the base model has no name that others can load it by, or the hub cannot be reached or refuses.
    """
    changed: dict[str, bytes] = {"README.md": card(source, base_model, repo=repo).encode()}
    if source.is_adapter:
        base = base_model or hub_name(source)
        if base is None:
            raise InputError(
                f"--push-to-hub: the adapter is for {source.model_name}, which others cannot load by that name; give "
                "the model's id on the hub with --base-model"
            )
        settings = json.loads((source.path / CONFIG_FILE).read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = base
        changed[CONFIG_FILE] = (json.dumps(settings, indent=2) + "\n").encode()
    return push(source.path, repo, changed, private)


def push(folder: Path, repo: str, changed: Mapping[str, bytes], private: bool = False) -> str:
    """Push the files of a folder, with those in `changed` in place of, or beside, its own. Returns the address.

    Raises:
        InputError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    contents: dict[str, bytes | Path] = {
        str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        for name, content in (contents | dict(changed)).items()
    ]
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.create_commit(repo, operations, commit_message="Upload from zotune")
    except Exception as error:  # of the connection, of the hub, of a token that is not there
        raise InputError(f"--push-to-hub: {repo} could not be pushed: {first_line(error)}") from error
    return str(done.repo_url)
