"""With a scale per token an answer depends on its own text alone: not on its batch, and hardly on its padding."""

import copy

import pytest
import torch

import tritune
from families import FAMILIES, VOCABULARY
from tritune import Quantization
from tritune.checkpoints.packed import PackedLinear
from tritune.modeling.layers import QuantLinear, RowLinear, twin_of
from tritune.recipes import load_recipe

DEPLOY = load_recipe("ti-g-deploy").section(Quantization)
TEXT = {name: family for name, family in FAMILIES.items() if name != "vit"}
QUANTIZATIONS = {
    "deploy": DEPLOY,
    "8-bit weights": Quantization(weight_bits=8, activation_granularity="token"),
    "quantized classifier": Quantization(activation_granularity="token", classifier=True),
    "4-bit activations": Quantization(activation_bits=4, activation_granularity="token", weight_granularity="row"),
}
every_text_family = pytest.mark.parametrize("family", TEXT.values(), ids=TEXT)
stages = pytest.mark.parametrize("stage", ["qat", "packed"])


def model_of(family, quantization, stage, seed=0):
    model = tritune.prepare(family.build(seed), quantization).eval()
    return tritune.convert(model) if stage == "packed" else model


def sentences(rows: int, tokens: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of every length from 1 to all tokens, padded."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, tokens + 1, (rows,), generator=generator)
    lengths[:2] = torch.tensor([tokens, 1])
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    return {"input_ids": torch.randint(1, VOCABULARY, mask.shape, generator=generator) * mask, "attention_mask": mask}


def rows_of(batch: dict[str, torch.Tensor], index) -> dict[str, torch.Tensor]:
    return {name: tensor[index] for name, tensor in batch.items()}


@stages
@pytest.mark.parametrize("name", QUANTIZATIONS)
@every_text_family
@torch.no_grad()
def test_batch_mates_change_no_bit(family, name, stage):
    model, batch = model_of(family, QUANTIZATIONS[name], stage), sentences(rows=12, tokens=9)
    whole = model(**batch).logits
    for size in (1, 2, 5):
        parts = [model(**rows_of(batch, slice(start, start + size))).logits for start in range(0, 12, size)]
        assert torch.equal(torch.cat(parts), whole), size
    order = torch.randperm(12)
    assert torch.equal(model(**rows_of(batch, order)).logits, whole[order])
    # Mates with far larger activations than one's own: what a scale per tensor would follow.
    loud = {name: torch.cat([tensor[:3], tensor[:1].expand(4, -1)]) for name, tensor in batch.items()}
    assert torch.equal(model(**loud).logits[:3], whole[:3])


@torch.no_grad()
def test_at_the_width_of_a_real_model():
    """Wide enough for blocked matrix products, whose float bits depend on the number of rows."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=384, num_hidden_layers=1, num_attention_heads=12, intermediate_size=1536
    )
    model = tritune.prepare(BertForSequenceClassification(config), DEPLOY).eval()
    batch = sentences(rows=9, tokens=21)
    whole = model(**batch).logits
    parts = [model(**rows_of(batch, slice(start, start + 2))).logits for start in range(0, 9, 2)]
    assert torch.equal(torch.cat(parts), whole)
    published = tritune.prepare(BertForSequenceClassification(config), Quantization()).eval()
    parts = [published(**rows_of(batch, slice(start, start + 2))).logits for start in range(0, 9, 2)]
    assert not torch.equal(torch.cat(parts), published(**batch).logits), "a scale per tensor follows the batch"


def codes_of(model, batch) -> list[torch.Tensor]:
    """The codes of every quantized Linear's input, those of real tokens only: (tokens, width)."""
    found, handles = [], []
    real = batch["attention_mask"].bool()

    def record(module, args):
        codes = module.input_quantizer.quantize(args[0])[0]
        found.append(codes[real] if codes.shape[:2] == real.shape else codes)

    for module in model.modules():
        if isinstance(module, QuantLinear | PackedLinear) and module.input_quantizer is not None:
            handles.append(module.register_forward_pre_hook(record))
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return found


@every_text_family
@torch.no_grad()
def test_padding_changes_next_to_nothing(family):
    """Softmax adds up a longer row in another order: a last bit, and now and then a code that sat on a boundary."""
    model, short = model_of(family, DEPLOY, "packed"), sentences(rows=12, tokens=9)
    expected, codes = model(**short).logits, codes_of(model, short)
    for more in (1, 4, 20):
        padded = {name: torch.nn.functional.pad(tensor, (0, more)) for name, tensor in short.items()}
        pairs = list(zip(codes, codes_of(model, padded), strict=True))
        flipped = sum((one != other).sum().item() for one, other in pairs) / sum(one.numel() for one, _ in pairs)
        assert flipped <= 1e-3
        # One code is 1/127 of its row's largest value; a flip moves a logit by less than a hundredth.
        assert (model(**padded).logits - expected).abs().max() <= 0.01 * expected.abs().max()


@torch.no_grad()
def test_the_float_classifier_is_taken_row_by_row_in_evaluation_only():
    family = FAMILIES["bert"]
    for quantization, kind in ((DEPLOY, RowLinear), (Quantization(), torch.nn.Linear)):
        assert type(model_of(family, quantization, "packed").classifier) is kind
    linear = torch.nn.Linear(16, 3)
    twin, values = twin_of(linear, RowLinear).eval(), torch.randn(5, 16)
    assert torch.equal(twin(values), torch.cat([linear(row[None]) for row in values]))
    assert torch.equal(twin(values[:, None]), torch.stack([linear(row[None]) for row in values]))
    assert twin(values[0]).shape == (3,)
    assert torch.equal(twin.train()(values), linear(values)) and twin.weight is linear.weight


@pytest.mark.parametrize("labels", [2, 7, 20])
def test_a_float_classifier_gives_the_same_wherever_its_weights_lie(labels):
    """A file's tensors are mapped into memory as they lie in it, at any multiple of four bytes."""
    layer, values = RowLinear(384, labels).eval(), torch.randn(3, 384)
    expected, count = layer(values), layer.weight.numel()
    for offset in range(16):
        elsewhere = torch.empty(count + 16)[offset : offset + count].view(labels, 384).copy_(layer.weight.detach())
        other = copy.deepcopy(layer)
        other.weight = torch.nn.Parameter(elsewhere)
        assert torch.equal(other(values), expected), offset
