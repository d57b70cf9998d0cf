"""What a student learns from: the losses, which layers they read, and the schedules of the intervention.

Begin with the table `LOSSES` in `losses/table.py`; names and choices that a command line checks are in `choices.py`.
"""
