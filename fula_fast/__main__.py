"""`python -m fula_fast` is `fula-fast`."""

from .cli.commands import main

main()
