"""The analyses of both papers: each a plain function of models and batches that returns numbers.

Every analysis is one file with one function, which returns a small dataclass; the functions next to it draw and
summarize that, `result.write_result` writes it. Begin with `layers.py`; what all read is opened by `subjects.py`.
"""

from .attention import attention
from .curvature import curvature
from .heads import heads
from .landscape import landscape
from .layers import layers
from .norms import norms
from .ranges import ranges
from .sensitivity import sensitivity

__all__ = ["attention", "curvature", "heads", "landscape", "layers", "norms", "ranges", "sensitivity"]
