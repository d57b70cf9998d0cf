"""The patch embedding: a convolution over patches is a Linear of each patch, quantized, packed and exported as one."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import tritune
from families import FAMILIES
from tritune.checkpoints.packed import PackedConv2d
from tritune.checkpoints.size import size_bytes
from tritune.compute import held
from tritune.errors import TrituneError
from tritune.modeling.layers import QuantConv2d, QuantLinear, is_patch_convolution, patches
from tritune.modeling.module_bits import bits_of_modules
from tritune.modeling.quantization import Quantization
from tritune.quant import Granularity, make_quantizer

PROJECTION = "vit.embeddings.patch_embeddings.projection"
SETTINGS = [
    {},
    {"weight_granularity": "row"},
    {"activation_granularity": "token", "weight_granularity": "row"},
    {"weight_bits": 4},
    {"weight_bits": 1},
    {"activation_bits": None},
    {"weight_quantizer": "lsq", "weight_granularity": "row"},
]


def quantizer(bits: int, granularity: str, name: str):
    return make_quantizer(name, bits=bits, granularity=Granularity(granularity), clip=2.5, threshold_factor=0.7)


def by_loops(images, weight, bias, kernel):
    """The convolution written out, in float64."""
    images, weight = images.double().numpy(), weight.double().numpy()
    (down, across), (batch, _, height, width) = kernel, images.shape
    result = np.zeros((batch, len(weight), height // down, width // across))
    for b, o, r, c in np.ndindex(*result.shape):
        patch = images[b, :, r * down : (r + 1) * down, c * across : (c + 1) * across]
        result[b, o, r, c] = (patch * weight[o]).sum() + bias[o].item()
    return result


@pytest.mark.parametrize("shape, kernel", [((2, 3, 8, 8), (4, 4)), ((1, 1, 7, 9), (3, 2)), ((2, 2, 5, 4), (5, 4))])
def test_is_the_convolution_of_quantized_operands(shape, kernel):
    convolution = nn.Conv2d(shape[1], 5, kernel, kernel)
    weights, inputs = quantizer(2, "tensor", "twn"), quantizer(8, "tensor", "uniform")
    images = 2 * torch.randn(shape)
    twin = QuantConv2d.from_float(convolution, weights, inputs)
    expected = by_loops(
        inputs(images),
        weights(convolution.weight.flatten(1)).view_as(convolution.weight).detach(),
        convolution.bias,
        kernel,
    )
    np.testing.assert_allclose(twin(images).detach().numpy(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(twin.quantized_weight.flatten(1), weights(convolution.weight.flatten(1)))
    cut = patches(images, kernel)
    assert torch.equal(cut.flatten(1, 2).mT, nn.functional.unfold(images, kernel, stride=kernel))


def test_gradients_are_those_of_the_linear():
    convolution, images = nn.Conv2d(3, 6, 4, 4), torch.randn(2, 3, 8, 8)
    linear = nn.Linear(48, 6)
    with torch.no_grad():
        linear.weight.copy_(convolution.weight.flatten(1)), linear.bias.copy_(convolution.bias)
    pair = quantizer(2, "row", "twn"), quantizer(8, "token", "uniform")
    left = QuantConv2d.from_float(convolution, *pair)(images)
    right = QuantLinear.from_float(linear, *pair)(patches(images, (4, 4)))
    assert torch.equal(left, right.permute(0, 3, 1, 2))
    weight = torch.randn_like(left)
    (left * weight).sum().backward()
    (right * weight.permute(0, 2, 3, 1)).sum().backward()
    assert torch.equal(convolution.weight.grad.flatten(1), linear.weight.grad)
    assert torch.equal(convolution.bias.grad, linear.bias.grad)


def test_without_quantizers_it_is_the_convolution():
    convolution, images = nn.Conv2d(3, 6, 4, 4), torch.randn(2, 3, 9, 8)
    assert torch.equal(QuantConv2d.from_float(convolution, None, None)(images), convolution(images))


@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2}, {"dilation": 2}, {"groups": 3}], ids=str)
def test_other_convolutions_are_not_over_patches(options):
    assert is_patch_convolution(nn.Conv2d(3, 6, 4, 4))
    assert not is_patch_convolution(nn.Conv2d(3, 6, 4, **{"stride": 4, **options}))


def test_it_is_float_unless_asked_for():
    family = FAMILIES["vit"]
    model = family.build().eval()
    images = family.batch()["pixel_values"]
    expected = model.get_submodule(PROJECTION)(images)
    names = set(model.state_dict())
    student = tritune.prepare(copy.deepcopy(model), Quantization())
    assert type(student.get_submodule(PROJECTION)) is nn.Conv2d
    assert torch.equal(student.get_submodule(PROJECTION)(images), expected)
    student = tritune.prepare(model, Quantization(patch_embedding=True))
    assert type(student.get_submodule(PROJECTION)) is QuantConv2d and set(student.state_dict()) == names
    assert not torch.equal(student.get_submodule(PROJECTION)(images), expected)


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_packed_is_qat_bit_for_bit(tmp_path, settings):
    family = FAMILIES["vit"]
    student = tritune.prepare(family.build(), Quantization(patch_embedding=True, **settings)).eval()
    batch = family.batch()
    expected, size = student(**batch).logits, size_bytes(student)
    packed = tritune.convert(copy.deepcopy(student))
    layer = packed.get_submodule(PROJECTION)
    assert type(layer) is PackedConv2d and layer.packed.dtype is torch.uint8 and layer.weight.numel() == 0
    assert torch.equal(layer.quantized_weight, student.get_submodule(PROJECTION).quantized_weight)
    assert torch.equal(packed(**batch).logits, expected)
    assert size_bytes(packed) >= size
    for model, folder in ((student, tmp_path / "qat"), (packed, tmp_path / "packed")):
        model.save_pretrained(folder)
        assert torch.equal(tritune.load(folder)(**batch).logits, expected)
    row = next(row for row in bits_of_modules(packed) if row.name == PROJECTION)
    assert row.parameters == student.get_submodule(PROJECTION).weight.numel()
    assert (row.weight_bits, row.activation_bits) == (
        settings.get("weight_bits", 2),
        settings.get("activation_bits", 8),
    )


def test_a_held_weight_is_quantized_once(monkeypatch):
    layer = QuantConv2d.from_float(nn.Conv2d(3, 6, 4, 4), quantizer(2, "tensor", "twn"), None)
    images = torch.randn(1, 3, 8, 8)
    with held.weights_held():
        first = layer(images)
        for _ in range(3):
            layer(images)
        with torch.no_grad():
            layer(images)
        assert len(held._held_weights.get()) == 1
        with torch.no_grad():
            layer.weight.mul_(-1)
        assert len(held._held_weights.get()) == 1 and not torch.equal(layer(images), first)
    assert torch.equal(layer(images), QuantConv2d.forward(layer, images))


def test_a_text_model_has_none():
    with pytest.raises(TrituneError, match="patch_embedding: this BertForSequenceClassification has no convolution"):
        tritune.prepare(FAMILIES["bert"].build(), Quantization(patch_embedding=True))


@torch.no_grad()
def test_with_scales_per_token_no_answer_depends_on_its_batch():
    quantization = Quantization(activation_granularity="token", weight_granularity="row", patch_embedding=True)
    model = tritune.prepare(FAMILIES["vit"].build(), quantization).eval()
    images = torch.randn(7, 3, 8, 8)
    together = model(pixel_values=images).logits
    for row in range(7):
        assert torch.equal(model(pixel_values=images[row : row + 1]).logits[0], together[row])


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS[:3], ids=str)
def test_exported(tmp_path, settings):
    pytest.importorskip("onnxscript", reason="needs tritune[onnx]")
    pytest.importorskip("onnxruntime", reason="needs tritune[onnx]")
    from onnx_graphs import count_integer_products, products_of
    from tritune.deploy.export.onnx import export_onnx
    from tritune.deploy.export.runtime import OnnxModel

    family = FAMILIES["vit"]
    model = tritune.prepare(family.build(), Quantization(patch_embedding=True, **settings)).eval()
    export_onnx(model, tmp_path / "model.onnx")
    batch = family.batch()
    torch.testing.assert_close(
        OnnxModel(tmp_path / "model.onnx")(**batch).logits, model(**batch).logits, rtol=1e-3, atol=1e-3
    )
    found = products_of(tmp_path / "model.onnx")
    assert found["convolution"] == 0 and found["integer"] == count_integer_products(model)
