"""`python -m tritune`: the command line."""

from .cli.main import main

main()
