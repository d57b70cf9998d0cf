"""Deployment: `export/` writes ONNX files and dense checkpoints, `bench/` compares them with other runtimes.

Begin with `export/onnx.py`, or with `bench/measure.py`.
"""
