"""`Quantization`: what of a model is quantized, and how; the value behind every recipe and every QAT checkpoint."""

import math
from dataclasses import dataclass, replace

from .errors import TrituneError, shown
from .quant import Granularity, LeastSquaresTernary, Quantizer, Ternary, Uniform

SWITCHES = (
    "query_key_value",
    "attention_projection",
    "ffn_in",
    "ffn_out",
    "embeddings",
    "pooler",
    "classifier",
    "attention_products",
)
BITS_OF_WEIGHT_QUANTIZER = {"twn": (2,), "least_squares": (2,), "uniform": range(3, 9)}


@dataclass(frozen=True)
class Quantization:
    """What is quantized and how; the defaults are the papers' W2A8.

    Attributes:
        weight_bits: 2 (ternary) to 8, or None for float weights.
        weight_quantizer: `twn` or `least_squares` for 2 bits, `uniform` for more; None chooses twn or uniform.
        weight_granularity: `tensor` or `row`, of the Linears.
        embedding_granularity: `tensor` or `row`, of the word embedding.
        activation_bits: 2 to 8, or None for float activations.
        activation_granularity: `tensor`, or `token`, with which no answer depends on its batch mates.
        clip: weights and activations are clipped to plus or minus this.
        threshold_factor: TWN's 0.7.
        query_key_value, attention_projection, ffn_in, ffn_out, embeddings, pooler, classifier: the parts of the model
            that are quantized.
        attention_products: whether Q, K, probabilities and V are quantized inside attention.
        layers: the layers that are quantized, counted from 0; None for all.

    Raises:
        TrituneError: a value is out of range; the message names the key.
    """

    weight_bits: int | None = 2
    weight_quantizer: str | None = None
    weight_granularity: str = "tensor"
    embedding_granularity: str = "row"
    activation_bits: int | None = 8
    activation_granularity: str = "tensor"
    clip: float = 2.5
    threshold_factor: float = 0.7
    query_key_value: bool = True
    attention_projection: bool = True
    ffn_in: bool = True
    ffn_out: bool = True
    embeddings: bool = True
    pooler: bool = True
    classifier: bool = False
    attention_products: bool = True
    layers: tuple[int, ...] | None = None

    def __post_init__(self):
        for key in ("weight_bits", "activation_bits"):
            bits = getattr(self, key)
            if bits is not None and not (type(bits) is int and 2 <= bits <= 8):
                raise TrituneError(f"{key} must be a whole number from 2 to 8, or null for float; got {shown(bits)}")
        for key, allowed in (
            ("weight_granularity", ("tensor", "row")),
            ("embedding_granularity", ("tensor", "row")),
            ("activation_granularity", ("tensor", "token")),
            ("weight_quantizer", (None, *BITS_OF_WEIGHT_QUANTIZER)),
        ):
            if getattr(self, key) not in allowed:
                raise TrituneError(
                    f"{key} must be one of {', '.join(map(str, allowed))}; got {shown(getattr(self, key))}"
                )
        if self.weight_bits not in BITS_OF_WEIGHT_QUANTIZER.get(self.weight_quantizer, (self.weight_bits,)):
            raise TrituneError(
                f"weight_quantizer {self.weight_quantizer} does not serve weight_bits {self.weight_bits}"
            )
        for key in ("clip", "threshold_factor"):
            value = getattr(self, key)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise TrituneError(f"{key} must be a positive number; got {shown(value)}")
        for key in SWITCHES:
            if type(getattr(self, key)) is not bool:
                raise TrituneError(f"{key} must be true or false; got {shown(getattr(self, key))}")
        if self.layers is not None:
            if not isinstance(self.layers, list | tuple) or any(type(layer) is not int for layer in self.layers):
                raise TrituneError(f"layers must be a list of whole numbers, or null for all; got {shown(self.layers)}")
            object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))

    def weights(self, granularity: str) -> Quantizer | None:
        """The quantizer of a weight, or None."""
        if self.weight_bits is None:
            return None
        name = self.weight_quantizer or ("twn" if self.weight_bits == 2 else "uniform")
        if name == "uniform":
            return Uniform(self.weight_bits, Granularity(granularity), self.clip)
        kind = Ternary if name == "twn" else LeastSquaresTernary
        return kind(Granularity(granularity), self.clip, self.threshold_factor)

    def activations(self) -> Quantizer | None:
        """The quantizer of a Linear's input, or None."""
        if self.activation_bits is None:
            return None
        return Uniform(self.activation_bits, Granularity(self.activation_granularity), self.clip)

    def products(self) -> dict[str, Quantizer]:
        """The quantizers of Q, K, probabilities and V.

        V lies on the summed axis of its product, so its finest scale is one per sequence and head.
        """
        quantizer = self.activations()
        if quantizer is None or not self.attention_products:
            return {}
        per_token = quantizer.granularity is Granularity.TOKEN
        value = replace(quantizer, granularity=Granularity.HEAD) if per_token else quantizer
        return {"query": quantizer, "key": quantizer, "attention_probs": quantizer, "value": value}
