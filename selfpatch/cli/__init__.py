"""The command line: `commands` holds the options of each one, `main` runs one. Imports no torch before that."""

from selfpatch.cli.main import COMMANDS, entry_point, main

__all__ = ["COMMANDS", "entry_point", "main"]
