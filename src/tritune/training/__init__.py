"""Training: the distillation trainer, the two-step run, and the fine-tuning of teachers."""
