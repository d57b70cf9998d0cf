"""The families that are served, one tiny model each, and those that are not; the table of the docs is made here.

`families.py` holds few models and every law runs over them; these are many, and the whole job runs over each.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from families import LABELS, VOCABULARY, wide_weights
from tritune import Quantization

BLOCK_LOSSES = {"logits": 1.0, "hidden_states": 1.0, "attention_scores": 1.0, "block_output": 1.0}
PER_TOKEN = Quantization(activation_granularity="token")


def text_batch() -> dict[str, torch.Tensor]:
    """Three sequences: one full, one padded, one of two tokens; all end with the token 2."""
    ids = torch.randint(3, VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([6, 4, 2])
    mask = (torch.arange(6) < lengths[:, None]).long()
    ids[range(3), lengths - 1] = 2
    return {"input_ids": torch.where(mask == 1, ids, 0), "attention_mask": mask}


def image_batch() -> dict[str, torch.Tensor]:
    """Three images of 16 x 16 pixels."""
    return {"pixel_values": torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))}


@dataclass(frozen=True)
class Served:
    """A family that is served.

    Attributes:
        name: as people call it.
        classes: of transformers; the first is the one that is trained here, the others are prepared.
        config: the class of their configuration.
        values: of the tiny model; none of them has dropout.
        layers: how many attention sites it has.
        post_norm: whether the block output follows a norm.
        image: whether it takes images.
        quantization: what it is prepared with; the default unless the family refuses that.
        coefficients: of the losses.
        remark: for the table.
    """

    name: str
    classes: tuple[str, ...]
    config: str
    values: dict[str, Any]
    layers: int = 2
    post_norm: bool = True
    image: bool = False
    quantization: Quantization = field(default_factory=Quantization)
    coefficients: dict[str, float] = field(default_factory=lambda: dict(BLOCK_LOSSES))
    remark: str = ""

    def build(self, seed: int = 0, index: int = 0) -> PreTrainedModel:
        """A float model of one of the classes, weights wide enough that quantizing them shows."""
        config = getattr(transformers, self.config)(**self.values)
        torch.manual_seed(seed)  # some parameters are left as they were in memory otherwise
        if "QuestionAnswering" in self.classes[index]:
            config.num_labels = 2
        model = getattr(transformers, self.classes[index])._from_config(config, attn_implementation="eager")
        return wide_weights(model, seed)

    def batch(self) -> dict[str, torch.Tensor]:
        """A small batch."""
        return image_batch() if self.image else text_batch()


_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_SURE = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_TEXT = _SIZES | _SURE | {"vocab_size": VOCABULARY, "num_labels": LABELS, "pad_token_id": 0}
_SHORT = {"max_position_embeddings": 32}
_IMAGE = _SIZES | _SURE | {"image_size": 16, "patch_size": 8, "num_labels": LABELS}
_CLIP = _SIZES | {"attention_dropout": 0.0, "projection_dim": 16}
_DECODER = _SIZES | {
    "vocab_size": VOCABULARY,
    "num_labels": LABELS,
    "pad_token_id": 0,
    "max_position_embeddings": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_dropout": 0.0,
    "use_cache": False,
}
_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "Model")


def _classes(stem: str, heads: tuple[str, ...] = _HEADS) -> tuple[str, ...]:
    return tuple(stem + head for head in heads)


SERVED = {
    row.name: row
    for row in (
        Served("BERT", _classes("Bert"), "BertConfig", _TEXT | _SHORT),
        Served("RoBERTa", _classes("Roberta"), "RobertaConfig", _TEXT | _SHORT | {"pad_token_id": 1}),
        Served("XLM-R", _classes("XLMRoberta"), "XLMRobertaConfig", _TEXT | _SHORT | {"pad_token_id": 1}),
        Served("CamemBERT", _classes("Camembert"), "CamembertConfig", _TEXT | _SHORT | {"pad_token_id": 1}),
        Served(
            "DistilBERT",
            _classes("DistilBert"),
            "DistilBertConfig",
            {"vocab_size": VOCABULARY, "num_labels": LABELS, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
            | {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
            | _SHORT,
        ),
        Served("ELECTRA", _classes("Electra"), "ElectraConfig", _TEXT | _SHORT | {"embedding_size": 12}),
        Served(
            "ALBERT",
            _classes("Albert"),
            "AlbertConfig",
            _TEXT | _SHORT | {"embedding_size": 12, "classifier_dropout_prob": 0.0},
            remark="no layer ranges: all layers share their weights",
        ),
        Served(
            "MobileBERT",
            _classes("MobileBert"),
            "MobileBertConfig",
            _TEXT | _SHORT | {"embedding_size": 12, "intra_bottleneck_size": 8, "num_feedforward_networks": 2},
            remark="a layer's bottlenecks count as its `ffn_in`",
        ),
        Served(
            "ModernBERT",
            _classes("ModernBert"),
            "ModernBertConfig",
            _SIZES
            | {"vocab_size": VOCABULARY, "num_labels": LABELS, "pad_token_id": 0, "local_attention": 4}
            | {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "num_hidden_layers": 3},
            layers=3,
            post_norm=False,
            remark="Q, K and V are one Linear, with separate scales; `min_max` weights only with a scale per row",
        ),
        Served("ViT", ("ViTForImageClassification", "ViTModel"), "ViTConfig", _IMAGE, post_norm=False, image=True),
        Served(
            "DeiT",
            ("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher", "DeiTModel"),
            "DeiTConfig",
            _IMAGE,
            post_norm=False,
            image=True,
        ),
        Served(
            "BEiT",
            ("BeitForImageClassification", "BeitModel"),
            "BeitConfig",
            _IMAGE | {"use_relative_position_bias": True, "drop_path_rate": 0.0},
            post_norm=False,
            image=True,
            remark="its position bias is part of the scores",
        ),
        Served(
            "DINOv2",
            ("Dinov2ForImageClassification", "Dinov2Model"),
            "Dinov2Config",
            _IMAGE | {"drop_path_rate": 0.0},
            post_norm=False,
            image=True,
        ),
        Served(
            "Swin",
            ("SwinForImageClassification", "SwinModel"),
            "SwinConfig",
            _SURE
            | {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 4]}
            | {"window_size": 4, "num_labels": LABELS, "drop_path_rate": 0.0},
            layers=3,
            post_norm=False,
            image=True,
            remark="hidden states are per stage, not per layer, so `distil_layers` cannot select among them",
        ),
        Served(
            "CLIP text",
            ("CLIPTextModel", "CLIPTextModelWithProjection"),
            "CLIPTextConfig",
            _CLIP | {"vocab_size": VOCABULARY, "max_position_embeddings": 16, "eos_token_id": 2},
            post_norm=False,
            quantization=PER_TOKEN,
            coefficients={name: weight for name, weight in BLOCK_LOSSES.items() if name != "logits"},
            remark="causal: `activation_granularity: token`",
        ),
        Served(
            "CLIP vision",
            ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
            "CLIPVisionConfig",
            _CLIP | {"image_size": 16, "patch_size": 8},
            post_norm=False,
            image=True,
            coefficients={name: weight for name, weight in BLOCK_LOSSES.items() if name != "logits"},
        ),
        Served(
            "CLIP images",
            ("CLIPForImageClassification",),
            "CLIPConfig",
            {
                "vision_config": _CLIP | {"image_size": 16, "patch_size": 8},
                "text_config": _CLIP | {"vocab_size": VOCABULARY, "num_hidden_layers": 1},
                "num_labels": LABELS,
            },
            post_norm=False,
            image=True,
        ),
        Served(
            "Llama",
            ("LlamaForCausalLM", "LlamaForSequenceClassification", "LlamaModel"),
            "LlamaConfig",
            _DECODER,
            post_norm=False,
            quantization=PER_TOKEN,
            remark="causal: `activation_granularity: token`",
        ),
        Served(
            "Mistral",
            ("MistralForCausalLM", "MistralForSequenceClassification"),
            "MistralConfig",
            _DECODER | {"sliding_window": 4},
            post_norm=False,
            quantization=PER_TOKEN,
            remark="causal: `activation_granularity: token`",
        ),
        Served(
            "Phi-3",
            ("Phi3ForCausalLM", "Phi3ForSequenceClassification"),
            "Phi3Config",
            _DECODER | {"bos_token_id": 1, "eos_token_id": 2, "resid_pdrop": 0.0},
            post_norm=False,
            quantization=PER_TOKEN,
            remark="causal: `activation_granularity: token`; Q, K and V are one Linear, with separate scales",
        ),
    )
}


@dataclass(frozen=True)
class Refused:
    """A family that is not served.

    Attributes:
        name: as people call it.
        model, config: its classes in transformers.
        values: of the tiny model.
        reason: for the table, and part of what the error says.
    """

    name: str
    model: str
    config: str
    values: dict[str, Any]
    reason: str

    def build(self) -> PreTrainedModel:
        """A float model."""
        return getattr(transformers, self.model)(getattr(transformers, self.config)(**self.values)).eval()


OWN_ATTENTION = "its attention does not go through transformers' AttentionInterface"
TWO_STACKS = "it is an encoder with a decoder, and only one of them alone is served"
_SMALL = _SIZES | {"vocab_size": VOCABULARY, "pad_token_id": 0}
_XLM = {"emb_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 32, "pad_index": 0}
_XLNET = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "pad_token_id": 0}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "pad_token_id": 0}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2} | {
    "decoder_start_token_id": 0,
    "eos_token_id": 2,
}
_BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "pad_token_id": 1, "eos_token_id": 2} | {
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "bos_token_id": 0,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
_FUNNEL = {"block_sizes": [1, 1], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "num_decoder_layers": 1}
_WORDS = {"vocab_size": VOCABULARY}


def _refused(name: str, stem: str, values: dict[str, Any], reason: str = OWN_ATTENTION) -> Refused:
    return Refused(name, f"{stem}ForSequenceClassification", f"{stem}Config", values, reason)


REFUSED = {
    row.name: row
    for row in (
        _refused("DeBERTa", "Deberta", _SMALL),
        _refused("DeBERTa v2 and v3", "DebertaV2", _SMALL),
        _refused("MPNet", "MPNet", _SMALL),
        _refused("RemBERT", "RemBert", _SMALL | {"input_embedding_size": 16}),
        _refused("MegatronBERT", "MegatronBert", _SMALL),
        _refused("ConvBERT", "ConvBert", _SMALL | {"embedding_size": 16, "num_attention_heads": 4, "head_ratio": 2}),
        _refused("Funnel", "Funnel", _WORDS | _FUNNEL),
        _refused("RoFormer", "RoFormer", _SMALL),
        _refused("XLM", "XLM", _WORDS | _XLM | {"pad_token_id": 0}),
        _refused("XLNet", "XLNet", _WORDS | _XLNET),
        _refused("BigBird", "BigBird", _SMALL | {"attention_type": "original_full"}),
        _refused("T5", "T5", _WORDS | _T5, TWO_STACKS),
        _refused("BART", "Bart", _WORDS | _BART, TWO_STACKS),
        _refused(
            "GPT-2", "GPT2", _WORDS | _GPT2, "its weights are in Conv1D modules, and only Linear modules are quantized"
        ),
        _refused("GPT-NeoX", "GPTNeoX", _SMALL, "the rows of query, key and value are mixed in"),
        _refused(
            "Gemma 2",
            "Gemma2",
            _DECODER | {"head_dim": 4, "num_attention_heads": 4},
            "self_attn needs softcap, which tritune's attention does not support",
        ),
    )
}


def table() -> list[str]:
    """The lines of the table of `docs/families.md`."""
    lines = ["| family | models | norm | two steps | packed | |", "|---|---|---|---|---|---|"]
    for row in SERVED.values():
        classes = ", ".join(f"`{name}`" for name in row.classes)
        norm = "post" if row.post_norm else "pre"
        lines.append(f"| {row.name} | {classes} | {norm} | yes | yes | {row.remark} |")
    for row in REFUSED.values():
        reason = {OWN_ATTENTION: "its attention does not go through `AttentionInterface`"}.get(row.reason, row.reason)
        lines.append(f"| {row.name} | `{row.model}` | | no | no | {_PLAIN.get(row.name, reason)} |")
    return lines


# Where the error's words are about one module of a model.
_PLAIN = {
    "GPT-2": "its weights are `Conv1D`, not `Linear`",
    "GPT-NeoX": "Q, K and V are interleaved head by head in one Linear",
    "Gemma 2": "it caps the attention scores",
}
