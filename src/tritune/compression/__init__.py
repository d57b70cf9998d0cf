"""From one file to a small model: a table is read and split, a teacher fine-tuned, students tried, the best shipped.

Begin with `compress.py`, the whole way; every other file is one stage of it, from `reading.py` to `scoring.py`.
"""
