"""The command line: `fula-fast`, a module per command that does more than call its worker."""

from .commands import main

__all__ = ["main"]
