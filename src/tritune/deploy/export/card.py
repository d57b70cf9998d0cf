"""The model card of an export: how it was made, and the lines that run it."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from ...checkpoints.load import is_quantized
from ...tasks.heads import Head
from .layouts import Layout

CARD = "README.md"

_TEXT = """\
# {title}

{what}, exported to ONNX by tritune.

| | |
|---|---|
{rows}

```sh
{command}
```

{verified}## Use

```{language}
{usage}
```
"""

_JS = """\
import {{ pipeline }} from "@huggingface/transformers";

const answer = await pipeline("{kind}", {name});
console.log(await answer({asked}));"""
_JS_EMBEDDINGS = """\
import {{ AutoModel, AutoTokenizer }} from "@huggingface/transformers";

const tokenizer = await AutoTokenizer.from_pretrained({name});
const model = await AutoModel.from_pretrained({name});
const texts = ["A man is playing a flute.", "Someone makes music."];
const {{ sentence_embedding }} = await model(tokenizer(texts, {{ padding: true, truncation: true }}));"""
_ASKED = {
    "question-answering": '"Where does Ada live?", "Ada lives in Delft."',
    "image-classification": '"image.png"',
}
_SENTENCE_TRANSFORMER = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({name}, backend="onnx")
embeddings = model.encode(["A man is playing a flute.", "Someone makes music."])"""
_CROSS_ENCODER = """\
from sentence_transformers import CrossEncoder

model = CrossEncoder({name}, backend="onnx")
scores = model.predict([("A man is playing a flute.", "Someone makes music.")])"""
_FASTEMBED = """\
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

TextEmbedding.add_custom_model(
    model={name}, pooling=PoolingType.DISABLED, normalization=False, output_name="sentence_embedding",
    sources=ModelSource(hf={name}), dim={width}, model_file="model.onnx",
)
model = TextEmbedding({name}, specific_model_path={name})
embeddings = list(model.embed(["A man is playing a flute.", "Someone makes music."]))"""


def export_card(
    model: PreTrainedModel,
    head: Head,
    layout: Layout,
    *,
    name: str,
    source: str,
    command: str,
    recipe: str,
    file: Path,
    opset: int,
    verified: dict[str, Any] | None,
) -> ModelCard:
    """The card of an exported folder.

    Args:
        model, head, layout: what was exported, and how.
        name: the folder or hub name that loads it.
        source: the folder or hub name of `model`.
        command: that made the folder.
        recipe: the name of the recipe that `model` was trained with; empty if that is not known.
        file: the ONNX file.
        opset: of it.
        verified: what `compare_on_dev` measured; None if it was not asked.
    """
    rows = [("made from", f"`{source}`")]
    rows += [("recipe", f"`{recipe}`")] if recipe else []
    rows += _numbers(model)
    rows.append(("file", f"`{layout.file if is_quantized(model) else layout.float_file}`, ONNX opset {opset}"))
    rows.append(("size", f"{file.stat().st_size / 1e6:.2f} MB"))
    data = ModelCardData(
        model_name=Path(name).name,
        library_name=layout.program,
        pipeline_tag=head.pipeline_tag or head.name,
        tags=["tritune", "onnx", *(["ternary"] if is_quantized(model) else [])],
    )
    text = _TEXT.format(
        title=Path(name).name,
        what=f"A model for {head.name}",
        rows="\n".join(f"| {key} | {value} |" for key, value in rows),
        command=command,
        verified="" if verified is None else _verified(verified),
        language="js" if layout.program == "transformers.js" else "python",
        usage=_usage(model, head, layout, name),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _numbers(model: PreTrainedModel) -> list[tuple[str, str]]:
    if not is_quantized(model):
        return [("numbers", "float32")]
    section = model.config.quantization_config.quantization
    both = (section.weight_bits, section.activation_bits)
    weights, activations = ("float32" if bits is None else f"{bits} bits" for bits in both)
    return [
        ("weights", f"{weights}, one scale per {section.weight_granularity}"),
        ("activations", f"{activations}, one scale per {section.activation_granularity}"),
    ]


def _verified(found: dict[str, Any]) -> str:
    scores = f"{found['metric']} {100 * found['model']:.2f} before and {100 * found['exported']:.2f} after the export"
    if "smallest_cosine" in found:
        same = f"cosine of the embeddings {found['smallest_cosine']:.6f} or more"
    else:
        same = (
            f"{found['compared'] - found['differing']} of {found['compared']} {found['unit']} with the same answer, "
            f"logits differ by {found['largest_logit_difference']:.2g} at most and by "
            f"{found['median_logit_difference']:.2g} in the median"
        )
    return f"On the dev set of {found['task']}: {scores}; {same}.\n\n"


def _usage(model: PreTrainedModel, head: Head, layout: Layout, name: str) -> str:
    template = {
        "transformers.js": _JS if head.has_logits else _JS_EMBEDDINGS,
        "sentence-transformers": _CROSS_ENCODER if head.has_logits else _SENTENCE_TRANSFORMER,
        "fastembed": _FASTEMBED,
    }[layout.name]
    width = getattr(model.config, "hidden_size", None)
    asked = _ASKED.get(head.name, '"A man is playing a flute."')
    return template.format(kind=head.name, name=json.dumps(name, ensure_ascii=False), asked=asked, width=width)
