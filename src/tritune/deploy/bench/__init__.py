"""Size and speed of an exported model, compared with the same model in other runtimes."""
