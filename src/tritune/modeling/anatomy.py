"""Where a model's attention sites are: found by running it once, not by a list of names.

One small forward pass with gradients is recorded: the calls of every Linear, of every norm and of our attention
function. The autograd graph then tells which Linear feeds Q, K and V (through rotary embeddings and norms too, where no
storage is shared), which one consumes the context, which tensor is the block's output, and which Linears lie between
the encoder and the logits. Rejected: tables of module names, which break with every new family; shared storage alone,
which does not see through rotary embeddings.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import UnsupportedModelError
from .attention import ObservedAttention, observe_attention
from .block_names import MemberCall, block_names, recorded_members
from .layers import is_patch_convolution
from .modes import evaluation_mode

Node = torch.autograd.graph.Node
# What a model may answer, the most particular first; the pooled state comes from no classifier.
_POOLED = "pooler_output"
_HEADS = ("logits", "start_logits", "text_embeds", "image_embeds", _POOLED)


@dataclass(frozen=True)
class AttentionSite:
    """One call of one attention module, with the names of the modules around it.

    Attributes:
        attention: the attention module.
        query, key, value: the Linears that feed it; one and the same where they are fused.
        projection: the Linear W_O that consumes the context.
        norm: the norm after the residual that follows.
        post_norm: whether the block output is that norm's output (post-norm) or its input (pre-norm).
        ffn_in, ffn_out: the Linears of the feed-forward network that follows; a bottleneck before the attention is
            among the former.
        fused_rows: of a fused Linear the rows that yield Q, K and V, which lie in this order; empty without one.
        causal: whether a token attends to itself and those before it only.
    """

    attention: str
    query: str
    key: str
    value: str
    projection: str
    norm: str
    post_norm: bool
    ffn_in: tuple[str, ...] = ()
    ffn_out: tuple[str, ...] = ()
    fused_rows: tuple[int, ...] = ()
    causal: bool = False


@dataclass(frozen=True)
class Anatomy:
    """The attention sites of a model in the order of their calls, and what lies before and after them.

    Attributes:
        sites: one per layer; layers that share weights name the same modules.
        embeddings: the word embedding and the Linears between it and the first layer.
        pooler: the Linears between the encoder and the classifier.
        classifier: the Linears that yield the answer: none, one, or more where answers are averaged, as in DeiT.
        patch_embedding: the convolutions over patches before the first layer, of an image model.
        blocks: of each layer the module that turns one hidden state into the next; nothing where layers are no blocks
            that follow each other.
    """

    sites: tuple[AttentionSite, ...]
    embeddings: tuple[str, ...] = ()
    pooler: tuple[str, ...] = ()
    classifier: tuple[str, ...] = ()
    patch_embedding: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()

    @property
    def shares_weights(self) -> bool:
        """Whether two layers call the same attention module, as in ALBERT."""
        return len({site.attention for site in self.sites}) < len(self.sites)

    @property
    def is_causal(self) -> bool:
        """Whether a token must not depend on later ones."""
        return any(site.causal for site in self.sites)

    @property
    def fused_rows(self) -> dict[str, tuple[int, ...]]:
        """The rows that yield Q, K and V of every fused Linear, by its name."""
        return {site.query: site.fused_rows for site in self.sites if site.fused_rows}

    def parts(self, layers: Iterable[int] | None = None) -> dict[str, tuple[str, ...]]:
        """Module names by part (`PARTS`), those of the encoder restricted to `layers` (None: all)."""
        sites = self.sites if layers is None else [self.sites[layer] for layer in layers]
        parts = {
            "query_key_value": [name for site in sites for name in (site.query, site.key, site.value)],
            "attention_projection": [site.projection for site in sites],
            "ffn_in": [name for site in sites for name in site.ffn_in],
            "ffn_out": [name for site in sites for name in site.ffn_out],
            "embeddings": self.embeddings,
            "patch_embedding": self.patch_embedding,
            "pooler": self.pooler,
            "classifier": self.classifier,
        }
        return {part: tuple(dict.fromkeys(names)) for part, names in parts.items()}


@dataclass
class _Call:
    """One event of the recorded pass; nodes are those of the autograd graph, None of what has no gradient.

    Attributes:
        tensors: Q, K and V of an attention call, else the output.
        causal: of an attention call.
    """

    kind: str
    name: str
    inputs: tuple[Node | None, ...]
    output: Node | None
    tensors: tuple[torch.Tensor, ...]
    causal: bool = False


@dataclass
class _Recording:
    calls: list[_Call] = field(default_factory=list)
    linear_outputs: dict[Node, int] = field(default_factory=dict)
    patches: list[str] = field(default_factory=list)
    members: list[MemberCall] = field(default_factory=list)

    def add(self, kind: str, name: str, module: nn.Module, args: tuple, given: torch.Tensor | tuple) -> None:
        """Forward hook of a Linear or a norm: note the call, with the first tensors that it took and gave."""
        output = _first_tensor(given)
        if kind == "linear" and output.grad_fn is not None:
            self.linear_outputs[output.grad_fn] = len(self.calls)
        self.calls.append(_Call(kind, name, (_first_tensor(args).grad_fn,), output.grad_fn, (output,)))

    def add_attention(self, model: nn.Module, name: str | None, call: ObservedAttention) -> None:
        """Note a call of our attention function; without a `name` it is of another model, called in a hook."""
        if name is None:
            return
        if call.extras:
            raise unsupported(
                model, f"{name} needs {', '.join(call.extras)}, which tritune's attention does not support"
            )
        if not call.causal and _hides_later_tokens(call.masked):
            raise unsupported(model, f"{name} masks later tokens but does not declare itself causal")
        nodes = tuple(tensor.grad_fn for tensor in call.operands)
        self.calls.append(_Call("attention", name, nodes, call.context.grad_fn, call.operands, call.causal))

    def add_patches(self, name: str, *call: object) -> None:
        """Forward hook of a convolution over patches: note its name, if no layer came before."""
        if not any(call.kind == "attention" for call in self.calls):
            self.patches.append(name)

    def upstream(self, node: Node | None, *more_stops: Node | None) -> set[Node]:
        """The nearest Linear outputs, parameters and `more_stops` from which `node` was computed."""
        found: set[Node] = set()
        seen: set[Node] = set()
        stack = [node]
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in self.linear_outputs or node in more_stops or not node.next_functions:
                found.add(node)
            else:
                stack.extend(parent for parent, _ in node.next_functions)
        return found

    def linears(self, node: Node | None) -> set[int]:
        """The calls of the nearest Linears upstream of `node`."""
        return {self.linear_outputs[found] for found in self.upstream(node) if found in self.linear_outputs}


def find_anatomy(model: PreTrainedModel, sample_inputs: dict[str, torch.Tensor]) -> Anatomy:
    """Run `model` once, in evaluation mode, and return where its attention sites are.

    Args:
        model: a float model whose attention implementation is already tritune's.
        sample_inputs: a small batch, as keyword arguments of the model.

    Raises:
        UnsupportedModelError: the model does not call our attention function, or its blocks cannot be told apart; the
            message names the model class and the reason.
    """
    recording, head = _record(model, sample_inputs)
    attentions = [i for i, call in enumerate(recording.calls) if call.kind == "attention"]
    if not attentions:
        raise unsupported(model, "its attention does not go through transformers' AttentionInterface")
    classifiers, pooler = _tail(model, recording, head, recording.calls[attentions[-1]])
    tail_names = {*classifiers, *pooler}
    starts = _starts(model, recording, attentions)
    sites = [
        _site(model, recording, call, range(start, end), tail_names)
        for call, start, end in zip(attentions, starts, [*starts[1:], len(recording.calls)], strict=True)
    ]
    word_embedding = word_embedding_of(model)
    names = {module: name for name, module in model.named_modules()}
    before = [call.name for call in recording.calls[: starts[0]] if call.kind == "linear"]
    return Anatomy(
        sites=tuple(sites),
        embeddings=(*([] if word_embedding is None else [names[word_embedding]]), *before),
        pooler=pooler,
        classifier=classifiers,
        patch_embedding=tuple(recording.patches),
        blocks=block_names(model, [site.attention for site in sites], recording.members),
    )


def word_embedding_of(model: PreTrainedModel) -> nn.Embedding | None:
    """The table that token ids are looked up in; None where there is none, as in a model of images."""
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:  # a class that does not say
        return None
    return embedding if isinstance(embedding, nn.Embedding) else None


def unsupported(model: nn.Module, reason: str) -> UnsupportedModelError:
    """The error that refuses the class of `model` for `reason`."""
    return UnsupportedModelError(f"{type(model).__name__} is not supported: {reason}")


def _is_norm(module: nn.Module) -> bool:
    """A leaf that owns vectors only: LayerNorm, RMSNorm, and whatever a family calls its own."""
    parameters = list(module.parameters(recurse=False))
    return not list(module.children()) and bool(parameters) and all(p.ndim == 1 for p in parameters)


def _hides_later_tokens(masked: torch.Tensor | None) -> bool:
    """Whether no query sees a later key, and not because of padding, which is the same for all queries."""
    if masked is None or masked.is_meta or masked.shape[-2] != masked.shape[-1]:
        return False
    later = torch.ones_like(masked, dtype=torch.bool).triu(1)
    return bool(masked[later].all() and (masked != masked[..., :1, :]).any())


def _first_tensor(value: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return value[0] if isinstance(value, tuple) else value


@contextmanager
def _trainable(model: nn.Module) -> Iterator[None]:
    """Gradients for every parameter, frozen ones too, within the context."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _record(model: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[_Recording, tuple[str, Node] | None]:
    """The recording of one pass, and the name and node of the head's output (logits, else the pooled state)."""
    recording = _Recording()
    names = {module: name for name, module in model.named_modules()}
    handles = []
    for module, name in names.items():
        if is_patch_convolution(module):
            handles.append(module.register_forward_hook(partial(recording.add_patches, name)))
        elif isinstance(module, nn.Linear) or _is_norm(module):
            kind = "linear" if isinstance(module, nn.Linear) else "norm"
            handles.append(module.register_forward_hook(partial(recording.add, kind, name)))
    try:
        with (
            evaluation_mode(model),
            _trainable(model),
            recorded_members(model) as recording.members,
            observe_attention(lambda call: recording.add_attention(model, names.get(call.module), call)),
        ):
            output = model(**inputs, return_dict=True)
    finally:
        for handle in handles:
            handle.remove()
    head = next(((key, output[key].grad_fn) for key in _HEADS if output.get(key) is not None), None)
    return recording, head


def _tail(
    model: nn.Module, recording: _Recording, head: tuple[str, Node] | None, last: _Call
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The classifier and the pooler: the Linears between head and encoder, last first, up to the first residual sum.

    Several Linears make up the classifier only where none of them lies in the block of the `last` attention.
    """
    key, node = head or ("", None)
    tail: list[tuple[str, ...]] = []
    block = _block(model, last.name)
    while calls := recording.linears(node):
        names = tuple(recording.calls[i].name for i in sorted(calls))
        if len(calls) > 1 and (tail or not block or any(name.startswith(block) for name in names)):
            break
        tail.append(names)
        node = recording.calls[min(calls)].inputs[0]
    has_classifier = bool(tail) and key != _POOLED
    return tail[0] if has_classifier else (), sum(tail[has_classifier:], ())


def _starts(model: nn.Module, recording: _Recording, attentions: list[int]) -> list[int]:
    """The first call of every layer.

    It is the first Linear that feeds Q, K or V, or one before it in the same block, as MobileBERT's bottlenecks are.
    """
    starts, previous = [], -1
    for attention in attentions:
        call = recording.calls[attention]
        fed = min(min(recording.linears(node), default=attention) for node in call.inputs)
        block = _block(model, call.name)
        if block and not (previous >= 0 and recording.calls[previous].name.startswith(block)):
            inside = (i for i in range(previous + 1, fed) if recording.calls[i].name.startswith(block))
            fed = next((i for i in inside if recording.calls[i].kind == "linear"), fed)
        starts.append(fed)
        previous = attention
    return starts


def _block(model: nn.Module, name: str) -> str:
    """What the names of all modules of the block of the module `name` begin with; empty where blocks are not listed."""
    while name:
        parent = name.rpartition(".")[0]
        if isinstance(model.get_submodule(parent), nn.ModuleList):
            return f"{name}."
        name = parent
    return ""


def _site(model: nn.Module, recording: _Recording, attention: int, layer: range, tail_names: set[str]) -> AttentionSite:
    """The modules around the attention call number `attention`; `layer` are the calls up to the next one's."""
    call = recording.calls[attention]
    feeds = [recording.linears(node) for node in call.inputs]
    if any(len(feed) != 1 for feed in feeds):
        if any(isinstance(module, Conv1D) for module in model.modules()):
            raise unsupported(model, "its weights are in Conv1D modules, and only Linear modules are quantized")
        raise unsupported(model, f"query, key and value of {call.name} do not come from one Linear each")
    query, key, value = (recording.calls[i] for (i,) in feeds)
    linears = [recording.calls[i] for i in range(attention + 1, layer.stop) if recording.calls[i].kind == "linear"]
    projection = next((c for c in linears if call.output in recording.upstream(c.inputs[0], call.output)), None)
    if projection is None:
        raise unsupported(model, f"no Linear consumes the context of {call.name}")
    norm, post_norm = _block_output(model, recording, projection, range(attention + 1, len(recording.calls)))
    ffn = [c for c in linears if c is not projection and c.name not in tail_names]
    ffn_nodes = {c.output for c in ffn}
    is_out = {c.name: recording.upstream(c.inputs[0]) <= ffn_nodes for c in ffn}
    before = [recording.calls[i] for i in range(layer.start, attention) if recording.calls[i].kind == "linear"]
    bottleneck = [c.name for c in before if c.name not in (query.name, key.name, value.name)]
    return AttentionSite(
        attention=call.name,
        query=query.name,
        key=key.name,
        value=value.name,
        projection=projection.name,
        norm=norm,
        post_norm=post_norm,
        ffn_in=(*bottleneck, *(name for name, out in is_out.items() if not out)),
        ffn_out=tuple(name for name, out in is_out.items() if out),
        fused_rows=_fused_rows(model, call, [query, key, value]),
        causal=call.causal,
    )


def _fused_rows(model: nn.Module, call: _Call, feeds: list[_Call]) -> tuple[int, ...]:
    """The rows of Q, K and V in the one Linear that yields them all; nothing where there are three."""
    names = {feed.name for feed in feeds}
    if len(names) == 3:
        return ()
    (output,) = feeds[0].tensors
    rows = tuple(operand.shape[1] * operand.shape[-1] for operand in call.tensors)
    if len(names) == 2 or sum(rows) != output.shape[-1]:
        raise unsupported(model, f"query, key and value of {call.name} come from fused Linears of an unknown order")
    end = 0
    for operand, count in zip(call.tensors, rows, strict=True):
        start, end = end, end + count
        if output.is_meta:  # a packed model: the float one was looked at when it was prepared
            continue
        weights = torch.linspace(1, 2, operand.numel(), dtype=operand.dtype, device=operand.device)
        (gradient,) = torch.autograd.grad(operand, output, weights.view(operand.shape), retain_graph=True)
        if gradient[..., :start].any() or gradient[..., end:].any():
            raise unsupported(model, f"the rows of query, key and value are mixed in {feeds[0].name}")
    return rows


def _block_output(model: nn.Module, recording: _Recording, projection: _Call, after: range) -> tuple[str, bool]:
    """The norm after the residual around `projection`, and whether its output is the block's (post-norm).

    The residual of the feed-forward network tells: it starts at the norm's output in a post-norm block and at the
    norm's input in a pre-norm one.
    """
    norm = None
    for i in after:
        call = recording.calls[i]
        if norm is None:
            sources = recording.upstream(call.inputs[0])
            if call.kind == "norm" and projection.output in sources and len(sources) > 1:
                norm = call
            continue
        sources = recording.upstream(call.inputs[0], norm.output, norm.inputs[0])
        if norm.inputs[0] in sources:
            return norm.name, False
        if norm.output in sources and len(sources) > 1:
            return norm.name, True
    raise unsupported(model, f"no norm with a residual sum before and after it follows {projection.name}")
