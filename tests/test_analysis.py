"""The analyses against slow loops, the explicit five-dimensional tensor, and the published notebooks' numbers."""

import copy
import json
import math

import numpy as np
import pytest
import torch

import golden
import tritune
from families import FAMILIES, text_batch
from tritune import analysis
from tritune.analysis.maps import cover_length_ratio, map_cosine, map_kl, ranking_loss
from tritune.analysis.norms import layer_norms, plot_norm_curves, plot_norm_maps
from tritune.analysis.result import write_result
from tritune.analysis.sensitivity import plot_sensitivity
from tritune.analysis.traces import traced
from tritune.checkpoints.size import size_bytes
from tritune.errors import TrituneError
from tritune.modeling.attention import observe_attention
from tritune.modeling.instrument import instrument_of


def pair(family: str = "bert", **quantization) -> tuple:
    """A teacher of a family and its quantized, untrained student."""
    teacher = tritune.instrument(FAMILIES[family].build())
    student = tritune.prepare(FAMILIES[family].build(), tritune.Quantization(**quantization)).eval()
    return teacher, student


def random_maps(heads: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(heads, tokens, tokens, generator=torch.Generator().manual_seed(seed)).softmax(-1)


# --- measures of maps ---------------------------------------------------------------------------------------------


def slow_ranking_loss(student: torch.Tensor, teacher: torch.Tensor) -> list[float]:
    losses = []
    for own, teachers in zip(student.tolist(), teacher.tolist(), strict=True):
        total = 0.0
        for s, t in zip(own, teachers, strict=True):
            for i in range(len(s) - 1):
                for j in range(1, len(s)):
                    sign = (t[i] > t[j]) - (t[i] < t[j])
                    total += max(0.0, -(s[i] - s[j]) * sign)
        losses.append(total)
    return losses


def slow_cover_length(student: torch.Tensor, teacher: torch.Tensor, k: int) -> list[float]:
    ratios = []
    for own, teachers in zip(student.tolist(), teacher.tolist(), strict=True):
        length, total = len(own), 0.0
        for s, t in list(zip(own, teachers, strict=True))[:-1]:
            order = sorted(range(length), key=lambda i: (-s[i], i))
            top = sorted(range(length), key=lambda i: (-t[i], i))[:k]
            total += max(order.index(i) for i in top) / length
        ratios.append(total / length)
    return ratios


CASES = {
    "random": (random_maps(3, 9), random_maps(3, 9, 1)),
    "one token": (random_maps(2, 1), random_maps(2, 1, 1)),
    "two tokens": (random_maps(2, 2), random_maps(2, 2, 1)),
    "ties": (torch.full((2, 6, 6), 1 / 6), random_maps(2, 6)),
    "ties of the teacher": (random_maps(2, 6), torch.full((2, 6, 6), 1 / 6)),
    "equal": (random_maps(2, 6), random_maps(2, 6)),
    "zeros": (torch.eye(5)[None], torch.eye(5).flip(0)[None]),
}


@pytest.mark.parametrize("case", CASES)
def test_ranking_loss_is_the_slow_loop(case):
    student, teacher = (maps.double() for maps in CASES[case])
    expected = torch.tensor(slow_ranking_loss(student, teacher), dtype=torch.float64)
    torch.testing.assert_close(ranking_loss(student, teacher), expected)
    torch.testing.assert_close(ranking_loss(student.float(), teacher.float()), expected.float())


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("case", CASES)
def test_cover_length_ratio_is_the_slow_loop(case, k):
    student, teacher = (maps.double() for maps in CASES[case])
    expected = torch.tensor(slow_cover_length(student, teacher, k), dtype=torch.float64)
    torch.testing.assert_close(cover_length_ratio(student, teacher, k), expected)


@pytest.mark.parametrize("case", CASES)
def test_kl_and_cosine_are_the_slow_loops(case):
    student, teacher = (maps.double() for maps in CASES[case])
    for own, teachers, kl, cosine in zip(
        student.tolist(), teacher.tolist(), map_kl(student, teacher), map_cosine(student, teacher), strict=True
    ):
        divergences, cosines = [], []
        for s, t in zip(own, teachers, strict=True):
            s, t = ([max(value, 1e-8) for value in row] for row in (s, t))
            divergences.append(sum(b * math.log(b / a) for a, b in zip(s, t, strict=True)))
            cosines.append(sum(a * b for a, b in zip(s, t, strict=True)) / (math.hypot(*s) * math.hypot(*t)))
        assert kl.item() == pytest.approx(np.mean(divergences), abs=1e-12)
        assert cosine.item() == pytest.approx(np.mean(cosines), abs=1e-6)


@pytest.mark.golden
def test_maps_of_the_published_notebooks(golden_folder):
    teacher = tritune.instrument(golden.tiny_bert("teacher.")).eval()
    student = tritune.prepare(golden.tiny_bert("student.")).eval()
    result = analysis.attention(teacher, {"student": student}, [{k: v[:1] for k, v in golden.batch().items()}])
    expected = golden.read("analysis")
    for name, key in (
        ("ranking_loss", "ranking_loss_per_head"),
        ("cover_length_ratio", "cover_length_ratio_top5_per_head"),
    ):
        values = torch.from_numpy(getattr(result, name)).flatten().float()
        torch.testing.assert_close(values, expected[key].cpu(), rtol=1e-5, atol=1e-5)


# --- attention ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_of_every_family(family):
    teacher, student = pair(family)
    batch = FAMILIES[family].batch()
    result = analysis.attention(teacher, {"student": student, "teacher": teacher}, [batch])
    assert result.sequences == 3
    assert np.all(result.kl[0] > 0) and np.all(np.isfinite(result.ranking_loss))
    assert np.abs(result.kl[1]).max() < 1e-6 and result.ranking_loss[1].max() == 0
    assert result.cosine[1] == pytest.approx(np.ones_like(result.cosine[1]), abs=1e-5)


@pytest.mark.parametrize("name", ["attention", "layers", "norms"])
def test_padding_and_batches_change_nothing(name):
    # Per-token scales: with per-tensor ones padding changes what the student computes.
    teacher, student = pair(activation_granularity="token")
    batch = text_batch()
    lengths = batch["attention_mask"].sum(1).tolist()
    single = [{key: value[i : i + 1, :n] for key, value in batch.items()} for i, n in enumerate(lengths)]

    def measured(batches):
        if name == "norms":
            return analysis.norms({"teacher": teacher, "student": student}, batches)
        return getattr(analysis, name)(teacher, {"student": student}, batches)

    padded, apart = measured([batch]), measured(single)
    for field in ("kl", "ranking_loss", "cosine", "mse", "alpha", "transformed_norm", "summed_weighted_norm"):
        if hasattr(padded, field):
            np.testing.assert_allclose(getattr(padded, field), getattr(apart, field), rtol=2e-4, atol=2e-5)


def test_models_of_different_shapes_are_refused():
    teacher, _ = pair("bert")
    other, _ = pair("distilbert")
    for compare in (analysis.attention, analysis.layers):
        with pytest.raises(TrituneError, match="only models of one shape can be compared"):
            compare(teacher, {"other": other}, [text_batch()])


# --- norms --------------------------------------------------------------------------------------------------------


@pytest.mark.golden
def test_norms_of_the_published_notebooks(golden_folder):
    teacher = tritune.instrument(golden.tiny_bert("teacher.")).eval()
    expected = golden.read("analysis")
    for layer, found in enumerate(layer_norms(teacher, golden.batch())):
        for name in ("transformed_norm", "weighted_norm", "summed_weighted_norm"):
            torch.testing.assert_close(getattr(found, name).float(), expected[f"{name}.{layer}"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_those_of_the_explicit_tensor(family, quantized):
    model = pair(family)[quantized]
    batch = FAMILIES[family].batch()
    values = []
    with observe_attention(lambda call: values.append(call.operands[2])):
        maps = traced(model, batch, "attention_probs")
    found = layer_norms(model, batch)
    for layer, site in enumerate(instrument_of(model).anatomy.sites):
        value, projection = values[layer].double(), model.get_submodule(site.projection)
        weight = projection.weight.detach().double()
        if quantized:
            value = projection.input_quantizer(values[layer]).double()  # per tensor: the same quantizer as that of V
            weight = projection.weight_quantizer(projection.weight.detach()).double()
        alpha = maps[layer].double()
        per_head = weight.view(len(weight), value.shape[1], -1)
        explicit = alpha[..., None] * torch.einsum("bhkd,ohd->bhko", value, per_head)[:, :, None]
        torch.testing.assert_close(found[layer].weighted_norm, explicit.norm(dim=-1))
        torch.testing.assert_close(
            found[layer].summed_weighted_norm, explicit.sum(1).norm(dim=-1), rtol=1e-6, atol=1e-6
        )


def test_mean_norms_by_group_are_the_slow_loop():
    teacher, student = pair()
    batch = text_batch()
    groups = {"even": torch.arange(40) % 2 == 0, "none": torch.zeros(40, dtype=torch.bool)}
    result = analysis.norms({"teacher": teacher, "student": student}, [batch, batch], groups)
    assert result.groups == ["even", "all"], "a group without tokens is left out"
    found = layer_norms(student, batch)[1]
    sums = {"alpha": [], "transformed_norm": [], "weighted_norm": [], "summed_weighted_norm": []}
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        for key in range(length):
            if batch["input_ids"][row, key] % 2 == 0:
                sums["transformed_norm"].append(found.transformed_norm[row, :, key])
                for query in range(length):
                    sums["alpha"].append(found.alpha[row, :, query, key])
                    sums["weighted_norm"].append(found.weighted_norm[row, :, query, key])
                    sums["summed_weighted_norm"].append(found.summed_weighted_norm[row, query, key])
    for name, values in sums.items():
        np.testing.assert_allclose(getattr(result, name)[1, 1, ..., 0], torch.stack(values).mean(0), rtol=1e-9)
    assert len(plot_norm_curves(result).axes) == 8
    assert plot_norm_maps(result, "even").axes


# --- ranges, layers, heads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", ["block_output", "context", "projection"])
@pytest.mark.parametrize("family", ["bert", "vit", "albert"])
def test_ranges_are_the_slow_loop(family, tensor):
    teacher, student = pair(family)
    batch = FAMILIES[family].batch()
    result = analysis.ranges({"teacher": teacher, "student": student}, [batch], tensor)
    field = {"block_output": "attention_block_output", "context": "context", "projection": "attention_projection"}
    mask = batch.get("attention_mask")
    for model, own in enumerate((teacher, student)):
        for layer, values in enumerate(traced(own, batch, field[tensor])):
            values = values.transpose(1, 2).flatten(2) if values.ndim == 4 else values
            for position in range(values.shape[1]):
                rows = [i for i in range(3) if mask is None or mask[i, position]]
                assert result.minimum[model, layer, position] == values[rows, position].min().item()
                assert result.maximum[model, layer, position] == values[rows, position].max().item()


def test_ranges_of_batches_of_different_lengths():
    teacher, _ = pair()
    batch = text_batch()
    short = {key: value[1:, :4] for key, value in batch.items()}
    result = analysis.ranges({"teacher": teacher}, [short, batch])
    alone = analysis.ranges({"teacher": teacher}, [batch])
    np.testing.assert_allclose(result.minimum, alone.minimum, rtol=1e-4, atol=1e-5)
    assert result.rows == 5
    with pytest.raises(TrituneError, match="block_output, context, projection"):
        analysis.ranges({"teacher": teacher}, [batch], "logits")


def test_layers_are_the_slow_loop():
    teacher, student = pair()
    batch = text_batch()
    result = analysis.layers(teacher, {"student": student}, [batch, batch])
    with torch.no_grad():
        states = [model(**batch, output_hidden_states=True).hidden_states for model in (student, teacher)]
    for layer, (own, teachers) in enumerate(zip(*states, strict=True)):
        rows = [
            (own[i, j] - teachers[i, j]).double().square().mean().item()
            for i in range(3)
            for j in range(own.shape[1])
            if batch["attention_mask"][i, j]
        ]
        assert result.mse[0, layer] == pytest.approx(np.mean(rows), rel=1e-6)
    assert result.tokens == 2 * batch["attention_mask"].sum()


def test_heads_are_the_probabilities():
    teacher, student = pair()
    batch = {key: value[1:2] for key, value in text_batch().items()}
    result = analysis.heads({"teacher": teacher, "student": student}, batch, list("abcd"), [(2, 1), (0, 0)])
    probs = traced(student, batch, "attention_probs")[2][0, 1, :4, :4]
    np.testing.assert_array_equal(result.maps[1, 0], probs.double())
    farthest = analysis.heads({"teacher": teacher, "student": student}, batch, list("abcd"), 1).heads
    comparison = analysis.attention(teacher, {"student": student}, [batch])
    assert farthest == [divmod(int(comparison.kl[0].argmax()), 2)]
    with pytest.raises(TrituneError, match=r"no head 3\.0: the models have layers 0 to 2 and heads 0 to 1"):
        analysis.heads({"teacher": teacher}, batch, list("abcd"), [(3, 0)])


# --- sensitivity --------------------------------------------------------------------------------------------------


def distance_from(teacher, batch):
    """A score: how close a model's logits are to the teacher's."""
    with torch.no_grad():
        logits = teacher(**batch).logits
        return lambda model: -(model(**batch).logits - logits).square().mean().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_sensitivity_is_that_of_models_prepared_so(family):
    """Parts switched off in place score as models that were never quantized there."""
    build, batch = FAMILIES[family].build, FAMILIES[family].batch()
    teacher = build()
    score = distance_from(tritune.instrument(copy.deepcopy(teacher)), batch)
    student = tritune.prepare(copy.deepcopy(teacher)).eval()
    before = score(student)
    with torch.no_grad():
        result = analysis.sensitivity(student, score)
        assert score(student) == before == result.quantized_score, "the model is as it was"
        assert result.float_score > -1e-8
        for choice in result.choices:
            other = tritune.prepare(build(), tritune.Quantization(**{choice.key: choice.value})).eval()
            assert choice.score == score(other), choice
            assert choice.size_bytes == size_bytes(other)
    best = max(result.choices, key=lambda choice: choice.score)
    assert result.suggestion is None if best.score <= before else result.suggestion.score == best.score
    assert plot_sensitivity(result).axes


def test_sensitivity_of_one_part_alone():
    build, batch = FAMILIES["bert"].build, text_batch()
    score = distance_from(tritune.instrument(build()), batch)
    everything = dict.fromkeys(
        ("query_key_value", "attention_projection", "ffn_in", "ffn_out", "embeddings", "pooler", "attention_products"),
        False,
    )
    result = analysis.sensitivity(tritune.prepare(build()).eval(), score)
    for layer in range(3):
        for column, kind in enumerate(result.kinds):
            quantization = tritune.Quantization(**(everything | {kind: True}), layers=(layer,))
            assert result.alone[layer, column] == score(tritune.prepare(build(), quantization).eval())
    alone = tritune.Quantization(**(everything | {"embeddings": True}))
    assert result.outside_alone["embeddings"] == score(tritune.prepare(build(), alone).eval())


def test_sensitivity_leaves_quantizers_that_learn_as_they_were():
    quantization = tritune.Quantization(weight_bits=4, weight_quantizer="lsq", activation_quantizer="lsq")
    student, batch = tritune.prepare(FAMILIES["bert"].build(), quantization).eval(), text_batch()
    modules, before = list(student.named_modules()), {n: t.clone() for n, t in student.state_dict().items()}
    score = distance_from(tritune.instrument(FAMILIES["bert"].build()), batch)
    with torch.no_grad():
        result = analysis.sensitivity(student, score)
        assert result.quantized_score == score(student) < result.float_score
    assert list(student.named_modules()) == modules
    assert list(student.state_dict()) == list(before)
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_sensitivity_of_nothing():
    model = tritune.prepare(FAMILIES["bert"].build(), tritune.Quantization(weight_bits=None, activation_bits=None))
    with pytest.raises(TrituneError, match="nothing in this model is quantized"):
        analysis.sensitivity(model, lambda model: 0.0)


# --- what is written ----------------------------------------------------------------------------------------------


def test_results_are_json_without_nan(tmp_path):
    teacher, student = pair()
    result = analysis.layers(teacher, {"student": student}, [text_batch()])
    result.mse[0, 0] = np.nan
    write_result("layers", result, {}, tmp_path / "new" / "folder")
    written = json.loads((tmp_path / "new" / "folder" / "layers.json").read_text())
    assert written["analysis"] == "layers" and written["students"] == ["student"]
    assert written["mse"][0][0] is None and written["mse"][0][1:] == result.mse[0, 1:].tolist()
    (tmp_path / "file").write_text("")
    with pytest.raises(TrituneError, match="file: cannot be written to"):
        write_result("layers", result, {}, tmp_path / "file")
