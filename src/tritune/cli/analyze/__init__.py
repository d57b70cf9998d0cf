"""`tritune analyze`: one file per analysis, each a subcommand."""
