"""Products of quantized operands, each as one step of autograd, and the kernels that stand in for some quantizers.

Begin with `products.py`; what a caller lets products keep is in `held.py`, devices and memory in `devices.py`.
"""
