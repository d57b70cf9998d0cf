"""Deployment: `export/` writes ONNX files and dense checkpoints, `bench/` compares them with other
runtimes, `web/` makes pages, `pack.py` writes packed models.

Begin with `export/onnx.py`, or with `bench/measure.py`.
"""
