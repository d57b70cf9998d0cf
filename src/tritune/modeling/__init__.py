"""A Transformer that is quantized: where its attention sites are, its layers, one pass through it.

Begin with `quantization.py` (what is quantized and how), then `swap.py`; `instrument.py` gives a model its traces and
interventions. `quantization.py` and `sites.py` need no torch.
"""
