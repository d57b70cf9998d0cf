"""What everything above uses: `evaluate.py` scores a model on a task, `predict.py` gives its predictions.

Begin with `evaluate.predict`, the one loop over batches.
"""
