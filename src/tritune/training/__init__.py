"""Training: the distillation trainer, the two-step run, and the fine-tuning of teachers.

Begin with `run.py`, the whole job, then `trainer.py`, the loss of a batch; `finetune.py` makes teachers.
"""
