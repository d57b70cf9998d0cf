"""The tiny models that tests run over, one row per family, and one family that no table of names could know."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

VOCABULARY, LABELS, TOKENS, WIDTH, HEADS = 40, 3, 7, 16, 2


class ZorpConfig(PreTrainedConfig):
    model_type = "zorp"

    def __init__(self, grumbles=2, thickness=WIDTH, beaks=HEADS, pre_norm=False, words=VOCABULARY, **kwargs):
        super().__init__(**kwargs)
        self.grumbles, self.thickness, self.beaks = grumbles, thickness, beaks
        self.pre_norm, self.words = pre_norm, words


class Blick(nn.Module):
    """Self-attention, if one looks closely."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        width = config.thickness
        self.snark, self.florp, self.quux, self.zib = (nn.Linear(width, width) for _ in range(4))

    def forward(self, gloop, veil):
        shape = (*gloop.shape[:2], self.config.beaks, -1)
        ask, offer, give = (m(gloop).view(shape).transpose(1, 2) for m in (self.quux, self.snark, self.florp))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, plain_attention)
        blend, _ = attend(self, ask, offer, give, veil, scaling=ask.shape[-1] ** -0.5, dropout=0.0)
        return self.zib(blend.flatten(2))


class Grumble(nn.Module):
    """One layer, post-norm or pre-norm."""

    def __init__(self, config):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.blick = Blick(config)
        width = config.thickness
        self.swell, self.shrink = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.calm, self.hush = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, gloop, veil):
        if self.pre_norm:
            gloop = gloop + self.blick(self.calm(gloop), veil)
            return gloop + self.shrink(F.silu(self.swell(self.hush(gloop))))
        gloop = self.calm(gloop + self.blick(gloop, veil))
        return self.hush(gloop + self.shrink(F.silu(self.swell(gloop))))


def plain_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    scores = query @ key.transpose(2, 3) * scaling
    probs = (scores if attention_mask is None else scores + attention_mask).softmax(-1)
    return (probs @ value).transpose(1, 2).contiguous(), probs


class ZorpForWhatever(PreTrainedModel):
    config_class = ZorpConfig
    base_model_prefix = "zorp"
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.wug = nn.Embedding(config.words, config.thickness)
        self.stack = nn.ModuleList(Grumble(config) for _ in range(config.grumbles))
        self.squish = nn.Linear(config.thickness, config.thickness)
        self.verdict = nn.Linear(config.thickness, config.num_labels)
        self.post_init()

    def get_input_embeddings(self):
        return self.wug

    def forward(self, input_ids, attention_mask=None, labels=None, output_hidden_states=False, return_dict=True):
        gloop = self.wug(input_ids)
        veil = create_bidirectional_mask(config=self.config, inputs_embeds=gloop, attention_mask=attention_mask)
        states = [gloop]
        for grumble in self.stack:
            states.append(grumble(states[-1], veil))
        logits = self.verdict(torch.tanh(self.squish(states[-1][:, 0])))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        kept = tuple(states) if output_hidden_states else None
        output = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=kept)
        return output if return_dict else output.to_tuple()


def text_batch(tokens: int = TOKENS) -> dict[str, torch.Tensor]:
    """Three sequences: one full, one padded, one of a single token."""
    lengths = torch.tensor([tokens, max(1, tokens - 3), 1])
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    ids = torch.randint(1, VOCABULARY, (3, tokens), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids * mask, "attention_mask": mask}


def image_batch() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))}


@dataclass(frozen=True)
class Family:
    """A row of the table.

    Attributes:
        model: the class, as it would be loaded.
        config: its tiny configuration; dropout is 0 so that training mode is repeatable.
        sites: (query, key, value, projection) names of every attention call; one name thrice where they are fused.
        block_output: (module, "input" or "output") of every layer that holds the attention block's output.
        batch: makes a small batch.
        norms_before: in pre-norm families, the norms between the residual stream and Q, K and V.
        loader: the class whose `from_pretrained` a user would call.
    """

    name: str
    model: type[PreTrainedModel]
    config: Callable[[], PreTrainedConfig]
    sites: tuple[tuple[str, str, str, str], ...]
    block_output: tuple[tuple[str, str], ...]
    batch: Callable[[], dict[str, torch.Tensor]] = text_batch
    norms_before: tuple[str, ...] = ()
    loader: type = AutoModelForSequenceClassification

    def build(self, seed: int = 0) -> PreTrainedModel:
        """A float model with eager attention and weights wide enough that quantizing them shows."""
        return wide_weights(self.model._from_config(self.config(), attn_implementation="eager"), seed)


@torch.no_grad()
def wide_weights(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The model, in evaluation mode, with weights that quantizing changes by much."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise * 0.3 if parameter.ndim > 1 else parameter + noise * 0.1)
    return model.eval()


_TEXT = {"vocab_size": VOCABULARY, "num_labels": LABELS, "max_position_embeddings": 32, "pad_token_id": 0}


def _bert() -> BertConfig:
    return BertConfig(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        intermediate_size=24,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **_TEXT,
    )


def _distilbert() -> DistilBertConfig:
    no_dropout = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    return DistilBertConfig(dim=WIDTH, n_layers=2, n_heads=HEADS, hidden_dim=24, **no_dropout, **_TEXT)


def _albert() -> AlbertConfig:
    return AlbertConfig(
        embedding_size=12,
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        intermediate_size=24,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout_prob=0.0,
        **_TEXT,
    )


def _modernbert() -> ModernBertConfig:
    return ModernBertConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=24,
        attention_dropout=0.0,
        embedding_dropout=0.0,
        mlp_dropout=0.0,
        classifier_dropout=0.0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        **_TEXT,
    )


def _vit() -> ViTConfig:
    return ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=LABELS,
    )


def _names(template: str, layers: int, *names: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(template.format(layer) + name for name in names) for layer in range(layers))


_BERT_LAYER, _DISTILBERT_LAYER, _VIT_LAYER = (
    "bert.encoder.layer.{}.",
    "distilbert.transformer.layer.{}.",
    "vit.layers.{}.",
)
_ALBERT_LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0."
_BLICK = ("blick.quux", "blick.snark", "blick.florp", "blick.zib")

FAMILIES = {
    family.name: family
    for family in (
        Family(
            "bert",
            BertForSequenceClassification,
            _bert,
            _names(
                _BERT_LAYER,
                3,
                "attention.self.query",
                "attention.self.key",
                "attention.self.value",
                "attention.output.dense",
            ),
            tuple((f"{_BERT_LAYER.format(i)}attention.output.LayerNorm", "output") for i in range(3)),
        ),
        Family(
            "distilbert",
            DistilBertForSequenceClassification,
            _distilbert,
            _names(_DISTILBERT_LAYER, 2, "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
            tuple((f"{_DISTILBERT_LAYER.format(i)}sa_layer_norm", "output") for i in range(2)),
        ),
        Family(
            "albert",
            AlbertForSequenceClassification,
            _albert,
            _names(_ALBERT_LAYER, 3, "attention.query", "attention.key", "attention.value", "attention.dense"),
            ((f"{_ALBERT_LAYER}attention.LayerNorm", "output"),) * 3,
        ),
        Family(
            "modernbert",
            ModernBertForSequenceClassification,
            _modernbert,
            _names("model.layers.{}.", 2, "attn.Wqkv", "attn.Wqkv", "attn.Wqkv", "attn.Wo"),
            tuple((f"model.layers.{i}.mlp_norm", "input") for i in range(2)),
            norms_before=("model.layers.1.attn_norm",),
        ),
        Family(
            "vit",
            ViTForImageClassification,
            _vit,
            _names(_VIT_LAYER, 2, "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
            tuple((f"{_VIT_LAYER.format(i)}layernorm_after", "input") for i in range(2)),
            image_batch,
            ("vit.layers.0.layernorm_before", "vit.layers.1.layernorm_before"),
            AutoModelForImageClassification,
        ),
        Family(
            "zorp",
            ZorpForWhatever,
            lambda: ZorpConfig(num_labels=LABELS, pad_token_id=0),
            _names("stack.{}.", 2, *_BLICK),
            tuple((f"stack.{i}.calm", "output") for i in range(2)),
            loader=ZorpForWhatever,
        ),
        Family(
            "zorp_pre_norm",
            ZorpForWhatever,
            lambda: ZorpConfig(pre_norm=True, num_labels=LABELS, pad_token_id=0),
            _names("stack.{}.", 2, *_BLICK),
            tuple((f"stack.{i}.hush", "input") for i in range(2)),
            norms_before=("stack.0.calm", "stack.1.calm"),
            loader=ZorpForWhatever,
        ),
    )
}


def one_layer(name: str) -> Family:
    """The family with one layer, where more would only take more time."""
    config = FAMILIES[name].config()
    for key in ("num_hidden_layers", "n_layers", "grumbles"):
        if hasattr(config, key):
            setattr(config, key, 1)
    if name == "modernbert":
        config.layer_types = config.layer_types[:1]
    return replace(FAMILIES[name], config=lambda: config)
