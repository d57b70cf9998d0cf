"""The families that are served, one tiny model each, and those that are not; the table of the docs is made here.

`families.py` holds few models and every law runs over them; these are many, and the whole job runs over each.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from tritune import Quantization

VOCABULARY, LABELS = 40, 3
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
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * 0.3 if parameter.ndim > 1 else parameter + noise * 0.1)
        return model.eval()

    def batch(self) -> dict[str, torch.Tensor]:
        """A small batch."""
        return image_batch() if self.image else text_batch()


_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_SURE = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_TEXT = _SIZES | _SURE | {"vocab_size": VOCABULARY, "num_labels": LABELS, "pad_token_id": 0}
_SHORT = {"max_position_embeddings": 32}
_IMAGE = _SIZES | _SURE | {"image_size": 16, "patch_size": 8, "num_labels": LABELS}
_CLIP = _SIZES | {"attention_dropout": 0.0, "projection_dim": 16}
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
            remark="no layer ranges: all layers are one",
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
            remark="Q, K and V are one Linear with a scale for each; `min_max` weights only with a scale per row",
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
            remark="hidden states are those of stages, not of layers: no choice of `distil_layers` among them",
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
            _SIZES
            | {"vocab_size": VOCABULARY, "num_labels": LABELS, "pad_token_id": 0, "max_position_embeddings": 32}
            | {"num_attention_heads": 4, "num_key_value_heads": 2, "use_cache": False},
            post_norm=False,
            quantization=PER_TOKEN,
            remark="causal: `activation_granularity: token`",
        ),
    )
}
