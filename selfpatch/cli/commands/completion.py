"""Options of `selfpatch completion`, and the script itself, which tyro writes."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, cast

import tyro
from tyro.conf import Positional, arg

from selfpatch.cli.command import Command


@dataclass(frozen=True)
class Completion:
    """Print a script that lets a shell complete commands and options.

    bash: selfpatch completion bash > ~/.local/share/bash-completion/completions/selfpatch; zsh: selfpatch completion
    zsh > FOLDER/_selfpatch, a folder of $fpath; fish: selfpatch completion fish >
    ~/.config/fish/completions/selfpatch.fish
    """

    shell: Annotated[
        Positional[Literal["bash", "zsh", "fish"]],
        arg(metavar="SHELL", help="the shell to write for: bash, zsh or fish"),
    ]


def print_completion(shell: str) -> None:
    """Print the script of tyro for all commands; options are those of the default recipe, task and preset."""
    from selfpatch.cli.main import COMMANDS  # which has this command, too

    kinds = tuple(
        Annotated[command.options([]), tyro.conf.subcommand(name, description=command.summary)]
        for name, command in COMMANDS.items()
    )
    try:
        tyro.cli(
            cast(Any, Union[kinds]),  # noqa: UP007
            prog="selfpatch",
            args=["--tyro-print-completion", shell],
            config=(tyro.conf.AvoidSubcommands,),
        )
    except SystemExit as stop:
        if stop.code:
            raise


COMMAND = Command(
    "print a script for the completion of a shell",
    lambda _: Completion,
    "selfpatch.cli.commands.completion:print_completion",
)
