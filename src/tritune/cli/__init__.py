"""The command line: one subcommand per file; nobody imports from here.

Begin with `main.py`, then `train.py`; options that several subcommands share are in `options.py`.
"""
