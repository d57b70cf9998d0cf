"""The two verbs that everything above uses: `evaluate.py` scores a model on a task, `predict.py` gives its answers.

Begin with `evaluate.predict`, the one loop over batches.
"""
