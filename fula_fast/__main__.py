"""`python -m fula_fast` is `fula-fast`."""

from .cli import main

main()
