"""Runs a command and turns what goes wrong into one paragraph and an exit code.

0 done; 1 the run failed; 2 the request cannot be met as it stands; 128 + N stopped by signal N, and saved.
"""

import atexit
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from selfpatch.cli.arguments import parse
from selfpatch.cli.command import Command
from selfpatch.cli.commands import (
    check,
    compare,
    completion,
    demo,
    embed,
    evaluate,
    export,
    predict,
    pretrain,
    recipes,
    shard,
    show,
    slurm,
    study,
    visualize,
    watch,
)
from selfpatch.cli.docs_pages import page_of
from selfpatch.config.processes import find_place
from selfpatch.errors import (
    FailedElsewhereError,
    RunFailedError,
    StoppedError,
    UserError,
    describe_os_error,
    unknown_name,
)
from selfpatch.output.terminal import escape_tracebacks, say, say_error
from selfpatch.recipes import RECIPES

COMMANDS: dict[str, Command] = {
    "demo": demo.COMMAND,
    "check": check.COMMAND,
    "pretrain": pretrain.COMMAND,
    "evaluate": evaluate.COMMAND,
    "compare": compare.COMMAND,
    "predict": predict.COMMAND,
    "visualize": visualize.COMMAND,
    "embed": embed.COMMAND,
    "export": export.COMMAND,
    "study": study.COMMAND,
    "shard": shard.COMMAND,
    "slurm": slurm.COMMAND,
    "recipes": recipes.COMMAND,
    "show": show.COMMAND,
    "watch": watch.COMMAND,
    "completion": completion.COMMAND,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    # Threads that spin while they wait make a run several times slower as soon as something else wants a core (data
    # workers, a neighbour on a shared machine): 130 against 20 images/s with one busy neighbour on two cores. Read by
    # OpenMP when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # On several processes torch's C++ warns of what is meant so (a search for unused parameters), once per process.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    try:
        return run(arguments)
    except StoppedError as stopped:
        say(str(stopped))
        return 128 + stopped.number
    except FailedElsewhereError as elsewhere:
        return elsewhere.code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if show_traceback:
            raise
        return report(error)


def run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        say(overview())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    command = COMMANDS[name]
    options = parse(command.options(rest), rest, f"selfpatch {name}")
    if getattr(options, "devices", 1) > 1 and find_place() is None:
        from selfpatch.commands.launch.devices import launch  # torch

        return launch(arguments, options.devices, options.settings.run.device)
    return command(options)


def report(error: Exception) -> int:
    """Print an error in a paragraph; returns the exit code."""
    match error:
        case UserError():
            code, text = 2, with_page(error)
        case BrokenPipeError():  # the reader of our output has gone, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        case OSError():  # before work started: `working` has the others
            code, text = 2, describe_os_error(error)
        case RunFailedError():
            code, text = 1, str(error)
        case RuntimeError():
            code, text = 1, f"{error} (--traceback shows where)"
        case _:
            code, text = 1, f"internal error, {type(error).__name__}: {error} (--traceback shows where)"
    say_error(f"selfpatch: {text}")
    return code


def with_page(error: UserError) -> str:
    """The message, and the page of the documentation that has more, if there is one and it is not named yet."""
    text, page = str(error), page_of(error.__traceback__)
    return f"{text.removesuffix('.')} (see {page})" if page and "docs/" not in text else text


def overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: selfpatch COMMAND ...\n\n"
        "From a folder of unlabeled images to a vision transformer whose patches carry meaning.\n\n"
        f"{commands}\n\n"
        "selfpatch COMMAND --help lists the options of a command; --traceback shows where an error came from.\n"
        f"Recipes of pretrain, which selfpatch recipes explains: {', '.join(RECIPES)}."
    )


def entry_point() -> None:
    escape_tracebacks()
    leave(main())


def leave(code: int) -> NoReturn:
    """End the process as an interpreter does, but leave its memory to the system: freeing torch takes a second."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or its reader has gone
            stream.flush()
    os._exit(code)
