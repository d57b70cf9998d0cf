"""`Quantization`: what of a model is quantized, and how; the value behind every recipe and every QAT checkpoint.

Recipes are read where nothing else is done, so the quantizers, which need torch, are imported where one is asked for.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from ..errors import OWN, TrituneError, check_among, shown

if TYPE_CHECKING:
    from ..quant import Quantizer

PARTS = (
    "query_key_value",
    "attention_projection",
    "ffn_in",
    "ffn_out",
    "embeddings",
    "patch_embedding",
    "pooler",
    "classifier",
)
SWITCHES = (*PARTS, "attention_products")
SAME = "same"
# What has bits, a quantizer and a granularity of its own.
KINDS = ("weight", "embedding", "activation")
# What the default recipe names, so that reading it needs no torch: quantizers of weights, and bits that they serve.
SERVED_WEIGHTS = (("quaternary", 2),)
# Quantizers with a fixed clip, for the same reason.
WITH_CLIP = ("quaternary", "uniform")
# What a pattern of `modules` may set.
WEIGHT_KEYS = ("weight_bits", "weight_quantizer", "weight_granularity")
ACTIVATION_KEYS = ("activation_bits", "activation_quantizer", "activation_granularity")
MODULE_KEYS = (*WEIGHT_KEYS, *ACTIVATION_KEYS, "weight_clip", "activation_clip", "threshold_factor")


@dataclass(frozen=True)
class Quantization:
    """What is quantized and how; the defaults are the papers' W2A8.

    Attributes:
        weight_bits: 1 (binary), 2 (ternary) to 8, or None for float weights.
        weight_quantizer: the name of a quantizer, see `quant.registry`, that serves `weight_bits`; None is bwn for 1
            bit, twn for 2 and uniform for more.
        weight_granularity: `tensor` or `row`, of the Linears.
        embedding_bits: of the word embedding: 1 to 8, None for float, or "same" for `weight_bits`.
        embedding_quantizer: None is `weight_quantizer` where that serves `embedding_bits`, else as there.
        embedding_granularity: `tensor` or `row`, of the word embedding.
        activation_bits: 2 to 8, or None for float activations.
        activation_quantizer: the name of a quantizer; None is uniform.
        activation_granularity: `tensor`, or `token`, with which no answer depends on its batch mates.
        weight_clip, activation_clip: weights and activations are clipped to plus or minus this; None for no clip. The
            published 2.5 costs accuracy where activations are larger, as those of sentence encoders are.
        threshold_factor: TWN's 0.7.
        query_key_value, attention_projection, ffn_in, ffn_out, embeddings, patch_embedding, pooler, classifier: the
            parts of the model that are quantized. Only image models have a patch embedding, whose input are pixels.
        attention_products: whether Q, K, probabilities and V are quantized inside attention.
        layers: the layers that are quantized, counted from 0; None for all.
        modules: settings of some of the quantized modules: a mapping from patterns over module names (`*`, `?` and
            `[...]` as in file names) to mappings from keys of `MODULE_KEYS` to values. The first pattern that matches a
            module's name wins; what it does not set stays as it is for the others. Of an attention module, the keys for
            activations mean the products inside.

    Raises:
        TrituneError: a value is out of range; the message names the key.
    """

    weight_bits: int | None = 2
    weight_quantizer: str | None = None
    weight_granularity: str = "tensor"
    embedding_bits: int | str | None = SAME
    embedding_quantizer: str | None = None
    embedding_granularity: str = "row"
    activation_bits: int | None = 8
    activation_quantizer: str | None = None
    activation_granularity: str = "tensor"
    weight_clip: float | None = 2.5
    activation_clip: float | None = 2.5
    threshold_factor: float = 0.7
    query_key_value: bool = True
    attention_projection: bool = True
    ffn_in: bool = True
    ffn_out: bool = True
    embeddings: bool = True
    patch_embedding: bool = False
    pooler: bool = True
    classifier: bool = False
    attention_products: bool = True
    layers: tuple[int, ...] | None = None
    modules: dict[str, dict[str, Any]] | None = field(default=None, hash=False)

    def __post_init__(self):
        _check_bits("weight_bits", self.weight_bits, smallest=1)
        _check_bits("activation_bits", self.activation_bits, smallest=2)
        if self.embedding_bits != SAME:
            _check_bits("embedding_bits", self.embedding_bits, smallest=1, or_else=", null for float, or same")
        for key, allowed in (
            ("weight_granularity", ("tensor", "row")),
            ("embedding_granularity", ("tensor", "row")),
            ("activation_granularity", ("tensor", "token")),
        ):
            check_among(self, key, allowed)
        for kind in KINDS:
            self._check_served(kind)
        for key in ("weight_clip", "activation_clip", "threshold_factor"):
            value = getattr(self, key)
            if value is None and key != "threshold_factor":
                continue
            if type(value) not in (int, float) or not 0 < value < math.inf:
                or_null = "" if key == "threshold_factor" else ", or null for no clip"
                raise TrituneError(f"{key} must be a positive number{or_null}; got {shown(value)}")
        for key in SWITCHES:
            if type(getattr(self, key)) is not bool:
                raise TrituneError(f"{key} must be true or false; got {shown(getattr(self, key))}")
        if self.layers is not None:
            if not isinstance(self.layers, list | tuple) or any(type(layer) is not int for layer in self.layers):
                raise TrituneError(f"layers must be a list of whole numbers, or null for all; got {shown(self.layers)}")
            object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))
        if self.modules is not None:
            object.__setattr__(self, "modules", self._checked_modules())

    @property
    def bits_of_embedding(self) -> int | None:
        """Of the word embedding, whether they are its own or those of the weights."""
        return self.weight_bits if isinstance(self.embedding_bits, str) else self.embedding_bits

    def pattern_of(self, name: str) -> str | None:
        """The pattern of `modules` whose settings a module of this name has, or None."""
        return next((pattern for pattern in self.modules or {} if fnmatchcase(name, pattern)), None)

    def of_module(self, name: str) -> "Quantization":
        """What holds for the module of this name: its own settings over the others, and no `modules`."""
        pattern = self.pattern_of(name)
        return self if self.modules is None or pattern is None else self._with(self.modules[pattern])

    def variants(self) -> list["Quantization"]:
        """Its own settings, and those of every pattern of `modules`."""
        return [self, *(self._with(settings) for settings in (self.modules or {}).values())]

    def quantizer_names(self, kinds: Collection[str] = KINDS) -> set[str]:
        """The names in the table of all quantizers of these kinds that may be at work."""
        kinds = [kind for kind in kinds if kind != "embedding" or self.embeddings]
        return {name for one in self.variants() for kind in kinds if (name := one._name(kind)) is not None}

    def names_per_tensor(self) -> set[str]:
        """The names of those that may be at work in products with a scale per tensor."""
        return {
            name
            for one in self.variants()
            for kind in ("weight", "activation")
            if (name := one._name(kind)) is not None and getattr(one, f"{kind}_granularity") == "tensor"
        }

    def weights(self, rows: int, columns: int, parts: tuple[int, ...] = ()) -> "Quantizer | None":
        """The quantizer of a Linear's weight, (rows, columns), or None.

        Args:
            parts: rows of every part of a fused weight; a scale per tensor is then one for each.

        Raises:
            TrituneError: `min_max` of a fused weight with a scale per tensor.
        """
        if not parts or self.weight_granularity == "row":
            return self._make("weight", rows, columns)
        from ..quant import in_parts

        made = [quantizer for count in parts if (quantizer := self._make("weight", count, columns)) is not None]
        return in_parts(made, parts) if made else None

    def embedding(self, rows: int, columns: int) -> "Quantizer | None":
        """The quantizer of a word embedding, (rows, columns), or None."""
        return self._make("embedding", rows, columns)

    def activations(self, features: int = 1) -> "Quantizer | None":
        """The quantizer of a Linear's input of so many features, or None."""
        return self._make("activation", 1, features)

    def products(self, features: int = 1, causal: bool = False) -> "dict[str, Quantizer]":
        """The quantizers of Q, K, probabilities and V, for so many features over all heads.

        V lies on the summed axis of its product, so its finest scale is one per sequence and head; but in a causal
        model that would tell earlier tokens of later ones. There it is one per token, which `products.context` folds
        into the probabilities.
        """
        if not self.attention_products:
            return {}
        granularities = dict.fromkeys(("query", "key", "attention_probs", "value"), self.activation_granularity)
        if self.activation_granularity == "token" and not causal:
            granularities["value"] = "head"
        return {
            operand: quantizer
            for operand, granularity in granularities.items()
            if (quantizer := self._make("activation", 1, features, granularity)) is not None
        }

    def _bits(self, kind: str) -> int | None:
        return self.bits_of_embedding if kind == "embedding" else getattr(self, f"{kind}_bits")

    def _name(self, kind: str) -> str | None:
        """The name in the table of the quantizer of a kind; None for float."""
        if (bits := self._bits(kind)) is None:
            return None
        name = getattr(self, f"{kind}_quantizer")
        if kind == "embedding" and name is None and self.weight_quantizer is not None:
            own = self.weight_quantizer
            name = own if (own, bits) in SERVED_WEIGHTS or bits in _served(own, "weight") else None
        if name is not None or kind == "activation":
            return name or "uniform"
        from ..quant import default_weight_quantizer

        return default_weight_quantizer(bits)

    def _make(self, kind: str, rows: int, columns: int, granularity: str | None = None) -> "Quantizer | None":
        if (name := self._name(kind)) is None:
            return None
        from ..quant import Granularity, make_quantizer

        granularity = granularity or getattr(self, f"{kind}_granularity")
        per_row = granularity == Granularity.ROW
        clip = self.activation_clip if kind == "activation" else self.weight_clip
        return make_quantizer(
            name,
            bits=self._bits(kind),
            granularity=Granularity(granularity),
            groups=(rows, 1) if per_row else (),
            sharing=columns if per_row else rows * columns,
            clip=math.inf if clip is None else clip,
            threshold_factor=self.threshold_factor,
        )

    def _check_served(self, kind: str) -> None:
        key, bits = f"{kind}_quantizer", self._bits(kind)
        name = getattr(self, key)
        if name is None or ((name, bits) in SERVED_WEIGHTS and kind != "activation"):
            return
        from ..quant import QUANTIZERS, Calibrated, quantizer_names

        is_activation = kind == "activation"
        check_among(self, key, (None, *quantizer_names("activation" if is_activation else "weight")), OWN)
        if bits not in (served := _served(name, kind)):
            raise TrituneError(
                f"{key} {name} does not support {kind}_bits {'null' if bits is None else bits}; it supports "
                f"{', '.join(map(str, served))}"
            )
        if is_activation and issubclass(QUANTIZERS[name], Calibrated) and self.activation_granularity != "tensor":
            raise TrituneError(
                f"activation_quantizer {name} has one range for all tokens: it needs activation_granularity tensor"
            )

    def _with(self, settings: Mapping[str, Any]) -> "Quantization":
        """With `settings` over one's own; a quantizer that does not support the new bits gives way to the default."""
        # A pattern that matches an embedding means its weight.
        own = {key.replace("weight", "embedding"): settings[key] for key in WEIGHT_KEYS if key in settings}
        settings = {**settings, **own}
        for kind in KINDS:
            name, bits = getattr(self, f"{kind}_quantizer"), settings.get(f"{kind}_bits", SAME)
            if name is not None and bits != SAME and bits not in _served(name, kind):
                settings.setdefault(f"{kind}_quantizer", None)
        return replace(self, **settings, modules=None)

    def _checked_modules(self) -> dict[str, dict[str, Any]]:
        modules = self.modules
        if isinstance(modules, list | tuple) and all(
            isinstance(row, list | tuple) and len(row) == 2 for row in modules
        ):
            modules = dict(modules)  # as config.json keeps their order
        if not isinstance(modules, Mapping):
            raise TrituneError(
                f"modules must be a mapping from name patterns to settings, or null; got {shown(modules)}"
            )
        checked = {}
        for pattern, settings in modules.items():
            if not isinstance(pattern, str) or not pattern:
                raise TrituneError(f"modules: a pattern must be text such as '*.layer.0.*'; got {shown(pattern)}")
            if not isinstance(settings, Mapping) or not settings or set(settings) - set(MODULE_KEYS):
                raise TrituneError(
                    f"modules: {shown(pattern)} must be a mapping with some of the keys {', '.join(MODULE_KEYS)}; "
                    f"got {shown(settings)}"
                )
            try:
                self._with(settings)
            except TrituneError as error:
                raise TrituneError(f"modules: {shown(pattern)}: {error}") from None
            checked[pattern] = dict(settings)
        return checked


def _served(name: str, kind: str) -> tuple[int, ...]:
    from ..quant import QUANTIZERS

    return QUANTIZERS[name].activation_bits if kind == "activation" else QUANTIZERS[name].weight_bits


def _check_bits(key: str, bits: Any, smallest: int, or_else: str = ", or null for float") -> None:
    if bits is not None and not (type(bits) is int and smallest <= bits <= 8):
        raise TrituneError(f"{key} must be a whole number from {smallest} to 8{or_else}; got {shown(bits)}")
