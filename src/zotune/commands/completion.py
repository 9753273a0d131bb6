"""`completion`: what a shell needs to complete commands, options and their choices."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from zotune.commands.names import COMMANDS

BASH = """\
# Completes zotune in bash. Made by `zotune completion bash`; other options take files.
_zotune() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" command="${{COMP_WORDS[1]}}"
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
        return
    fi
    case "$command $before" in
{choices}
    esac
    if [[ "$word" == -* ]]; then
        case "$command" in
{flags}
        esac
    fi
}}
complete -o default -F _zotune zotune
"""
ZSH = "# Completes zotune in zsh, by its support of bash's completions.\nautoload -U +X bashcompinit && bashcompinit\n"
FISH = "# Completes zotune in fish. Made by `zotune completion fish`; other options take files.\n"


@dataclass(frozen=True)
class Completion:
    """Print what a shell needs to complete commands, options and choices: eval "$(zotune completion bash)" in bash and
    zsh, zotune completion fish | source in fish."""

    shell: Annotated[tyro.conf.Positional[Literal["bash", "zsh", "fish"]], tyro.conf.arg(metavar="{bash,zsh,fish}")]
    """The shell: bash, zsh or fish."""

    def run(self) -> None:
        print({"bash": bash, "zsh": lambda: ZSH + bash(), "fish": fish}[self.shell](), end="")


def bash() -> str:
    """A function of bash that knows every command, its options and their choices."""
    choices, flags = [], []
    for name in COMMANDS:
        known = dict(_options(name))
        words = " ".join([*known, "--help"])
        flags.append(f'        {name}) COMPREPLY=($(compgen -W "{words}" -- "$word")) ;;')
        for flag, values in known.items():
            if values:
                reply = f'COMPREPLY=($(compgen -W "{" ".join(values)}" -- "$word")); return'
                choices.append(f'        "{name} {flag}") {reply} ;;')
    return BASH.format(commands=" ".join(COMMANDS), choices="\n".join(choices), flags="\n".join(flags))


def fish() -> str:
    """The same for fish: one `complete` of its own for each command and each option."""
    lines = []
    for name, (_, _, what) in COMMANDS.items():
        lines.append(f"complete -c zotune -n __fish_use_subcommand -f -a {name} -d {shlex.quote(what)}")
        for flag, values in _options(name):
            choices = f" -x -a {shlex.quote(' '.join(values))}" if values else ""
            lines.append(f"complete -c zotune -n '__fish_seen_subcommand_from {name}' -l {flag[2:]}{choices}")
    return FISH + "\n".join(lines) + "\n"


def _options(command: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The flags of a command, each with its choices where it has some."""
    from zotune.config.tables import METHOD_TABLES

    file, name, _ = COMMANDS[command]
    made = getattr(import_module(f"zotune.commands.{file}"), name)
    hints = get_type_hints(made, include_extras=True)
    for field in fields(made):
        if field.name == "tables":
            continue
        if "Positional" not in str(hints[field.name]):  # tyro's mark of what has no flag
            yield f"--{field.name.replace('_', '-')}", tuple(_choices(hints[field.name]))
    if "tables" in made.__dataclass_fields__ and hasattr(made, "from_file"):
        for table, settings in METHOD_TABLES.items():
            yield from ((f"--{table}.{key}".replace("_", "-"), item.choices) for key, item in settings.items())


def _choices(hint: Any) -> Iterator[str]:
    """The values of every Literal in a type."""
    if get_origin(hint) is Literal:
        yield from map(str, get_args(hint))
    for part in get_args(hint):
        if get_origin(hint) is not Literal:
            yield from _choices(part)
