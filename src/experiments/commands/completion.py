"""TAB completion in bash, zsh and fish."""

import click
from click.shell_completion import BashComplete, ZshComplete, add_completion_class, shell_complete

VARIABLE = "_EXPERIMENTS_COMPLETE"


class _Bash(BashComplete):
    """Bash, without a space behind `key=`, which is to be followed by a value."""

    source_template = BashComplete.source_template.replace(
        "COMPREPLY+=($value)", "COMPREPLY+=($value)\n            [[ $value == *= ]] && compopt -o nospace"
    )


class _Zsh(ZshComplete):
    """Zsh, without a space behind `key=`."""

    source_template = ZshComplete.source_template.replace(
        "compadd -U -V unsorted -a completions",
        "compadd -U -V unsorted -S '' -- ${(M)completions:#*=}; compadd -U -V unsorted -- ${completions:#*=}",
    )


def complete(command_line: click.Group, instruction: str) -> int:
    """Prints what a shell asks for, its completion script or what may follow, and returns the exit status."""
    add_completion_class(_Bash, "bash")
    add_completion_class(_Zsh, "zsh")
    return shell_complete(command_line, {}, "experiments", VARIABLE, instruction)


def overrides(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The overrides that may follow."""
    from experiments.config.completion import candidates

    words = list(context.params.get(str(parameter.name)) or ())
    # Bash breaks words at =, so that key, = and value come one by one, and completes the value alone.
    joined: list[str] = []
    while words:
        word = words.pop(0)
        if word == "=" and joined:
            joined[-1] += "="
        elif joined and joined[-1].endswith("="):
            joined[-1] += word
        else:
            joined.append(word)
    if joined and not joined[-1].startswith("-") and (joined[-1].endswith("=") or "=" not in joined[-1]):
        before = joined.pop().rstrip("=") + "="
        return [text.removeprefix(before) for text in candidates(joined, before + incomplete)]
    return candidates(joined, incomplete)


def groups(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The groups of options that may follow."""
    from experiments.config.completion import groups

    return groups(incomplete)
