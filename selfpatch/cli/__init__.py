"""The command line: a file per command with its options; `main` runs one. Imports no torch before a command runs."""

from selfpatch.cli.main import COMMANDS, entry_point, main

__all__ = ["COMMANDS", "entry_point", "main"]
