"""The analyses of both papers: each a plain function of models and batches that returns numbers.

Every analysis is one file and one function; what it returns is a small dataclass, which `plots` of the same file draws
and `write_result` writes.
"""
