"""From one file to a small model: data is read and split, a teacher fine-tuned, students tried, the best shipped.

Begin with `compress.py`, the whole way; every other file is one stage of it, from `forms.py`, which reads rows of any
form, and `kinds/`, which know what the rows are for, to `scoring.py`.
"""
