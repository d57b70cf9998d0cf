"""With token scales and valid averages nothing depends on padding or on batch mates: float64, to 1e-9."""

import pytest
import torch

import tritune
from families import FAMILIES, LABELS, VOCABULARY
from tritune import Intervention, Quantization, Site
from tritune.distil.losses import LOSSES, Pair, distillation_losses

every_text_family = pytest.mark.parametrize("name", ["bert", "distilbert", "albert", "zorp", "zorp_pre_norm"])
LENGTHS = [6, 4, 1]
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
QUANTIZATIONS = {
    "tensor_weights": Quantization(activation_granularity="token"),
    "row_weights": Quantization(activation_granularity="token", weight_granularity="row", classifier=True),
    "four_bit_weights": Quantization(weight_bits=4, activation_granularity="token"),
}


def padded(width: int, lengths: list[int] = LENGTHS, filler: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(3))
    batch = torch.full((len(lengths), width), filler)
    for row, length in enumerate(lengths):
        batch[row, :length] = ids[row, :length]
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": batch, "attention_mask": mask}


def pair_of_models(name: str, quantization: Quantization):
    family = FAMILIES[name]
    student = tritune.prepare(family.build(), quantization).double().train()
    return student, tritune.instrument(family.build(seed=1)).double().eval()


def step(student, teacher, batch, site, average="valid"):
    """Logits, every loss, every gradient."""
    student.zero_grad(set_to_none=True)
    with torch.no_grad():
        theirs = teacher(**batch, output_trace=True)
    output = student(**batch, output_trace=True, intervention=site and Intervention(site, theirs.trace))
    labels = torch.arange(len(batch["input_ids"])) % LABELS
    losses = distillation_losses(
        Pair(output, theirs, batch["attention_mask"], labels, average),
        dict.fromkeys(set(LOSSES) - {"token_scaled_logits", "embedding"}, 1.0),
    )
    sum(losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
    return output.logits.detach(), {name: loss.detach() for name, loss in losses.items()}, gradients


@every_text_family
@pytest.mark.parametrize("site", [None, *Site])
@pytest.mark.parametrize("quantization", QUANTIZATIONS.values(), ids=QUANTIZATIONS)
def test_nothing_depends_on_the_padding(name, site, quantization):
    student, teacher = pair_of_models(name, quantization)
    logits, losses, gradients = step(student, teacher, padded(max(LENGTHS)), site)
    for batch in (padded(8), padded(15, filler=7)):
        own_logits, own_losses, own_gradients = step(student, teacher, batch, site)
        torch.testing.assert_close(own_logits, logits, **CLOSE)
        torch.testing.assert_close(own_losses, losses, **CLOSE)
        for key, gradient in gradients.items():
            if gradient is None:
                assert own_gradients[key] is None
            else:
                torch.testing.assert_close(own_gradients[key], gradient, **CLOSE, msg=key)


@every_text_family
def test_padded_averages_depend_on_it_as_published(name):
    """The other side of the switch: so that the law above is known to say something."""
    student, teacher = pair_of_models(name, Quantization(activation_granularity="token"))
    short, long = (step(student, teacher, padded(width), None, "padded")[1] for width in (6, 15))
    for loss in ("hidden_states", "attention_scores", "block_output", "context", "projection"):
        assert abs(short[loss] - long[loss]) > 1e-6
    for loss in ("logits", "attention_map", "ground_truth"):
        torch.testing.assert_close(short[loss], long[loss], **CLOSE)


@every_text_family
@torch.no_grad()
def test_batch_mates_change_an_answer_with_tensor_scales_only(name):
    for granularity in ("token", "tensor"):
        student, _ = pair_of_models(name, Quantization(activation_granularity=granularity))
        together = student.eval()(**padded(6)).logits
        for row, length in enumerate(LENGTHS):
            single = {key: value[row : row + 1, :length] for key, value in padded(6).items()}
            distance = (student(**single).logits[0] - together[row]).abs().max().item()
            assert distance <= 1e-9 if granularity == "token" else distance > 1e-6


@torch.no_grad()
def test_image_answers_do_not_depend_on_batch_mates_either():
    student, _ = pair_of_models("vit", Quantization(activation_granularity="token"))
    images = FAMILIES["vit"].batch()["pixel_values"].double()
    together = student.eval()(pixel_values=images).logits
    for row in range(len(images)):
        torch.testing.assert_close(student(pixel_values=images[row : row + 1]).logits[0], together[row], **CLOSE)


@pytest.mark.parametrize("name", ["bert", "zorp_pre_norm"])
@pytest.mark.parametrize("granularity", ["tensor", "token"])
@pytest.mark.parametrize("average", ["padded", "valid"])
@pytest.mark.parametrize("site", [None, *Site])
def test_a_fully_masked_sequence_stays_finite(name, granularity, average, site):
    student, teacher = pair_of_models(name, Quantization(activation_granularity=granularity))
    logits, losses, gradients = step(student, teacher, padded(6, lengths=[6, 0, 1]), site, average)
    assert logits.isfinite().all() and all(loss.isfinite() for loss in losses.values())
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients.values())


@every_text_family
@torch.no_grad()
def test_a_missing_mask_is_a_mask_of_ones(name):
    student, _ = pair_of_models(name, Quantization())
    batch = padded(6, lengths=[6, 6])
    torch.testing.assert_close(student(batch["input_ids"]).logits, student(**batch).logits, **CLOSE)
