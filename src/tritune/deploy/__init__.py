"""What ships and what it is worth: `export/` writes ONNX and dense checkpoints, `bench/` measures them beside others.

Begin with `export/onnx.py`, or with `bench/measure.py`.
"""
