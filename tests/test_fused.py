"""One Linear for Q, K and V: its rows have the scales, the gradients and the bytes of three."""

from types import MethodType

import pytest
import torch

import tritune
from families import FAMILIES, WIDTH
from tritune import Intervention, Quantization, Site, TrituneError, UnsupportedModelError
from tritune.modeling.instrument import instrument_of
from tritune.quant import QUANTIZERS, Calibrated, Granularity, GraphRowParts, RowParts, in_parts, make_quantizer

FAMILY = FAMILIES["modernbert"]
ROWS = (6, 2, 4)
PACKABLE = [(name, kind.weight_bits[0]) for name, kind in QUANTIZERS.items() if kind.weight_bits and name != "min_max"]


def parts_of(name: str, bits: int) -> list:
    return [make_quantizer(name, bits=bits, granularity=Granularity.TENSOR, sharing=5 * rows) for rows in ROWS]


@pytest.mark.parametrize(("name", "bits"), PACKABLE)
def test_parts_are_what_separate_weights_are(name, bits):
    """Values, gradients, learned scales' gradients, stored codes and what is restored from them."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(sum(ROWS), 5, generator=generator) * torch.tensor([0.1] * 6 + [2.0] * 2 + [0.5] * 4)[:, None]
    weight[6:8, 0] = torch.tensor([4.0, -4.0])  # beyond the clip
    direction = torch.randn(weight.shape, generator=generator)
    fused, separate = in_parts(parts_of(name, bits), ROWS), parts_of(name, bits)
    for part, block in zip(separate, weight.split(ROWS), strict=True):
        if isinstance(part, Calibrated):
            part.reset()
            part.calibrate(block)
    if isinstance(fused, Calibrated):
        fused.reset()
        fused.calibrate(weight)
    whole, blocks = weight.clone().requires_grad_(), [b.clone().requires_grad_() for b in weight.split(ROWS)]
    values = fused(whole)
    expected = torch.cat([part(block) for part, block in zip(separate, blocks, strict=True)])
    assert torch.equal(values, expected)
    (values * direction).sum().backward()
    (expected * direction).sum().backward()
    assert torch.equal(whole.grad, torch.cat([block.grad for block in blocks]))
    if isinstance(fused, torch.nn.Module):
        learned = [p.grad for part in separate if isinstance(part, torch.nn.Module) for p in part.parameters()]
        for own, grad in zip(fused.parameters(), learned, strict=True):
            torch.testing.assert_close(own.grad, grad)
    if not fused.packable:
        return
    codes, scale = fused.store(weight)
    assert scale.shape == (sum(ROWS), 1) and fused.granularity is Granularity.ROW
    assert torch.equal(codes, torch.cat([p.store(b)[0] for p, b in zip(separate, weight.split(ROWS), strict=True)]))
    assert torch.equal(fused.frozen().restore(codes, scale), values)


def test_one_part_is_the_quantizer_itself():
    weight = torch.randn(4, 5)
    assert torch.equal(RowParts(QUANTIZERS["twn"](), (4,))(weight), QUANTIZERS["twn"]()(weight))


def test_a_fused_linear_has_a_scale_for_each_of_its_parts():
    student = tritune.prepare(FAMILY.build())
    for site in instrument_of(student).anatomy.sites:
        fused = student.get_submodule(site.query)
        assert site.fused_rows == (WIDTH,) * 3 and isinstance(fused.weight_quantizer, RowParts)
        for block, values in zip(fused.weight.split(WIDTH), fused.quantized_weight.split(WIDTH), strict=True):
            assert torch.equal(values, QUANTIZERS["twn"]()(block.detach()))
            assert len(values.abs().unique()) == 2
    per_row = tritune.prepare(FAMILY.build(), Quantization(weight_granularity="row"))
    assert not isinstance(per_row.get_submodule(site.query).weight_quantizer, RowParts)
    learned = tritune.prepare(FAMILY.build(), Quantization(weight_quantizer="lsq", weight_bits=4))
    assert isinstance(learned.get_submodule(site.query).weight_quantizer, GraphRowParts)


def test_an_offset_per_part_is_refused():
    with pytest.raises(TrituneError, match="weight_granularity: MinMax needs row"):
        tritune.prepare(FAMILY.build(), Quantization(weight_quantizer="min_max", weight_bits=8))


def split_forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
    """ModernBERT's attention with Q and K taken from detached states: what `Site.MAP` must amount to."""
    from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb, eager_attention_forward

    shape = (*hidden_states.shape[:2], 3, -1, self.head_dim)
    cut = self.Wqkv(hidden_states.detach()).view(shape).transpose(1, 3)
    value = self.Wqkv(hidden_states).view(shape).transpose(1, 3)[:, :, 2]
    query, key = apply_rotary_pos_emb(cut[:, :, 0], cut[:, :, 1], *position_embeddings, unsqueeze_dim=1)
    scores = query @ key.transpose(-1, -2) * self.head_dim**-0.5 + attention_mask
    self.scores = scores
    _, probs = eager_attention_forward(self, query, key, value, attention_mask, scaling=self.head_dim**-0.5)
    context = (self.planted @ value).transpose(1, 2).flatten(2)
    return self.out_drop(self.Wo(context)), probs


def test_under_map_only_the_rows_of_v_send_a_gradient_down():
    """Against attention written by hand, on a student whose quantizers are off: every gradient, to the last digits."""
    batch = FAMILY.batch()
    student = tritune.prepare(FAMILY.build(), Quantization(weight_bits=None, activation_bits=None))
    with torch.no_grad():
        teacher = tritune.instrument(FAMILY.build(seed=1))(**batch, output_trace=["attention_probs"]).trace
    output = student(**batch, output_trace=["attention_scores"], intervention=Intervention(Site.MAP, teacher))
    seen = batch["attention_mask"][:, None, None, :]
    (
        sum((layer.attention_scores * seen).square().mean() for layer in output.trace.layers) + output.logits.sum()
    ).backward()

    expected = FAMILY.build()
    layers = expected.model.layers
    for layer, planted in zip(layers, teacher.layers, strict=True):
        layer.attn.planted = planted.attention_probs
        layer.attn.forward = MethodType(split_forward, layer.attn)
    logits = expected(**batch).logits
    (sum((layer.attn.scores * seen).square().mean() for layer in layers) + logits.sum()).backward()
    torch.testing.assert_close(output.logits, logits)
    wanted = dict(expected.named_parameters())
    for name, parameter in student.named_parameters():
        assert (parameter.grad is None) == (wanted[name].grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-4, atol=1e-6)


def test_mixed_rows_are_refused():
    """GPT-NeoX interleaves Q, K and V head by head."""
    from transformers import GPTNeoXConfig, GPTNeoXForSequenceClassification

    config = GPTNeoXConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        pad_token_id=0,
        use_parallel_residual=False,
    )
    with pytest.raises(UnsupportedModelError, match=r"rows of query, key and value are mixed in .*query_key_value"):
        tritune.prepare(GPTNeoXForSequenceClassification(config), Quantization(activation_granularity="token"))


def test_layers_can_be_chosen():
    student = tritune.prepare(FAMILY.build(), Quantization(layers=(1,)))
    kinds = [type(layer.attn.Wqkv).__name__ for layer in student.model.layers]
    assert kinds == ["Linear", "QuantLinear"]
