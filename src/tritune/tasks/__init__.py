"""What a model is asked and how its answers are scored: the task table, kinds of tasks, readers of files, metrics.

Begin with `registry.py` (the table), then `heads/` (one kind of task per file); `names.py` needs no torch.
"""
