"""`zotune completion`: bash itself completes commands, options and choices by what is printed."""

import shlex
import shutil
import subprocess

import pytest

from zotune.cli import COMMANDS, main

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def completed(script: str, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    given = " ".join(f"'{word}'" for word in words)
    code = f"{script}\nCOMP_WORDS=({given}); COMP_CWORD={len(words) - 1}; _zotune; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    result = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


@needs_bash
def test_bash_completes_commands_options_and_choices(capsys):
    main(["completion", "bash"])
    script = capsys.readouterr().out
    assert completed(script, "zotune", "re") == {"resume", "replay"}
    assert completed(script, "zotune", "train", "--num-st") == {"--num-steps"}
    assert completed(script, "zotune", "train", "--adam.b") == {"--adam.beta1", "--adam.beta2"}
    assert completed(script, "zotune", "train", "--estimator", "l") == {"lens"}
    assert completed(script, "zotune", "export", "--outtype", "q") == {"q8_0"}
    assert completed(script, "zotune", "train", "--train-data", "re") == set()  # files, by bash's own rule


@needs_bash
def test_what_is_for_zsh_is_read_by_it_or_at_least_by_bash(capsys):
    main(["completion", "zsh"])
    script = capsys.readouterr().out
    assert "bashcompinit" in script
    shell = "zsh" if shutil.which("zsh") else "bash"
    subprocess.run([shell, "-n", "-c", script], check=True)


def test_what_is_for_fish_names_the_same_commands_options_and_choices(capsys):
    main(["completion", "fish"])
    script = capsys.readouterr().out
    lines = [shlex.split(line) for line in script.splitlines() if not line.startswith("#")]
    assert all(line[:3] == ["complete", "-c", "zotune"] for line in lines)
    commands = [line[line.index("-a") + 1] for line in lines if "__fish_use_subcommand" in line]
    assert commands == list(COMMANDS)
    train = [line for line in lines if "__fish_seen_subcommand_from train" in line]
    options = {line[line.index("-l") + 1]: line[line.index("-a") + 1].split() if "-a" in line else [] for line in train}
    assert "adam.beta1" in options
    assert options["num-steps"] == []
    assert "lens" in options["estimator"]
    if shutil.which("fish"):
        subprocess.run(["fish", "--no-execute", "-c", script], check=True)


def test_an_unknown_shell_is_refused():
    with pytest.raises(SystemExit) as stop:
        main(["completion", "tcsh"])
    assert stop.value.code == 2
