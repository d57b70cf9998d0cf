"""The whole job on a tiny model of every family that is served: two steps of training, packed, saved, loaded."""

import copy
import gc
import importlib
import re
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

import tritune
from bounds import rounding
from tritune import DistillationTrainer, Intervention, Quantization, Site, TrituneError
from tritune.modeling.instrument import instrument_of, instrument_skeleton
from tritune.modeling.layers import QuantEmbedding, QuantLinear, RowLinear, twin_of
from tritune.modeling.quantization import PARTS
from tritune.modeling.sites import ATTENTION_SITES
from zoo import SERVED, Served, table

every_family = pytest.mark.parametrize("family", SERVED.values(), ids=SERVED)
STEPS = 6
DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(autouse=True, scope="module")
def _few_objects_to_collect():
    """Trainer collects garbage before every training; what is imported by then need not be looked at."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def answer(output) -> torch.Tensor:
    """The logits, or of a model without a head its last states."""
    return output["logits"] if "logits" in output else output["last_hidden_state"]


def rows(family: Served) -> list[dict[str, torch.Tensor]]:
    batch = family.batch()
    return [{name: values[row] for name, values in batch.items()} for row in range(3)]


def train(student, teacher, family: Served, folder, schedule: str | None, **values) -> list[dict]:
    values = {"coefficients": family.coefficients} | values
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=3,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = DistillationTrainer(student, teacher, arguments, schedule=schedule, train_dataset=rows(family), **values)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@every_family
def test_two_steps_then_packed(family, tmp_path):
    teacher = family.build()
    student = tritune.prepare(copy.deepcopy(teacher), family.quantization)
    before = {name: parameter.clone() for name, parameter in student.named_parameters()}
    entries = train(student, teacher, family, tmp_path / "one", "gradual")
    entries += train(student, teacher, family, tmp_path / "two", None)
    assert len(entries) == 2 * STEPS
    for name, weight in family.coefficients.items():
        assert not weight or all(0 < entry[f"{name}_loss"] < float("inf") for entry in entries), name
    quantized = [name for name, m in student.named_modules() if isinstance(m, QuantLinear | QuantEmbedding)]
    moved = dict(student.named_parameters())
    assert all(not torch.equal(moved[f"{name}.weight"], before[f"{name}.weight"]) for name in quantized)

    student.eval()
    batch = family.batch()
    with torch.no_grad():
        expected = answer(student(**batch))
        assert expected.isfinite().all() and not torch.equal(expected, answer(teacher(**batch)))
        packed = tritune.convert(student)
        assert torch.equal(answer(packed(**batch)), expected)
        packed.save_pretrained(tmp_path / "packed")
        loaded = type(teacher).from_pretrained(tmp_path / "packed")
        assert torch.equal(answer(loaded(**batch)), expected)


@every_family
@torch.no_grad()
def test_with_the_teachers_projections_a_student_with_quantized_attention_is_its_teacher(family):
    teacher, batch = family.build(), family.batch()
    off = dict.fromkeys(PARTS, False) | {"query_key_value": True, "attention_projection": True}
    settings = {"activation_granularity": family.quantization.activation_granularity}
    student = tritune.prepare(copy.deepcopy(teacher), Quantization(**off, **settings))
    for name in instrument_of(student).anatomy.classifier:
        if isinstance(student.get_submodule(name), RowLinear):  # row by row, the last bit may be another
            teacher.set_submodule(name, twin_of(teacher.get_submodule(name), RowLinear))
    expected = answer(teacher(**batch))
    trace = tritune.instrument(teacher)(**batch, output_trace=True).trace
    assert not torch.equal(answer(student(**batch)), expected)
    assert torch.equal(answer(student(**batch, intervention=Intervention(Site.PROJECTION, trace))), expected)
    own, blocks = student(**batch, output_trace=True), instrument_of(student).anatomy.blocks
    assert bool(blocks) == (family.name != "Swin")
    for site in Site if blocks else ATTENTION_SITES:
        output = student(**batch, intervention=Intervention(site, own.trace))
        assert torch.equal(answer(output), answer(own))
        assert not torch.equal(answer(student(**batch, intervention=Intervention(site, trace))), answer(own))


CLASSES = [(family, index) for family in SERVED.values() for index in range(len(family.classes))]


@pytest.mark.parametrize(("family", "index"), CLASSES, ids=[family.classes[index] for family, index in CLASSES])
def test_every_linear_has_its_part(family, index):
    model = tritune.instrument(family.build(index=index))
    anatomy = instrument_of(model).anatomy
    assert len(anatomy.sites) == family.layers
    assert {site.post_norm for site in anatomy.sites} == {family.post_norm}
    parts = {part: names for part, names in anatomy.parts().items() if part != "patch_embedding"}  # no Linears
    named = [name for names in parts.values() for name in names]
    assert len(named) == len(set(named))
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    words = (
        {name for name, m in model.named_modules() if m is model.get_input_embeddings()} if not family.image else set()
    )
    assert set(named) == linears | words
    headless = family.classes[index].endswith("Model")
    assert len(parts["classifier"]) == (0 if headless else 2 if "WithTeacher" in family.classes[index] else 1)
    if not anatomy.shares_weights:
        for layer, site in enumerate(anatomy.sites):
            block = site.attention.split(".")
            of_layer = [name for part in PARTS[:4] for name in anatomy.parts([layer])[part]]
            depth = next(i for i, word in enumerate(block) if word.isdigit() and i >= 1)
            own = ".".join(block[: depth + 1])
            assert all(name.startswith(own) for name in of_layer), of_layer


OTHERS = [(family, index) for family, index in CLASSES if index]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "index"), OTHERS, ids=[family.classes[index] for family, index in OTHERS])
@torch.no_grad()
def test_other_classes_are_packed_too(family, index, tmp_path):
    student = tritune.prepare(family.build(index=index), family.quantization)
    batch = family.batch()
    expected = student(**batch).to_tuple()
    tritune.convert(student).save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path)(**batch).to_tuple()
    for own, other in zip(expected, loaded, strict=True):
        if isinstance(own, torch.Tensor):
            # A product with a float weight may be summed in another order where the file's weights lie elsewhere.
            atol = rounding(own.dtype, 16, 16 * own.abs().max())
            torch.testing.assert_close(own, other, rtol=0, atol=float(atol))


@pytest.mark.parametrize("coefficients", [{"block_output": 1.0}, {"hidden_states": 1.0}], ids=list)
def test_swin_has_blocks_to_choose_from_but_no_hidden_states(coefficients, tmp_path):
    family = SERVED["Swin"]
    teacher = family.build()
    student = tritune.prepare(copy.deepcopy(teacher), family.quantization)
    if "hidden_states" in coefficients:
        with pytest.raises(TrituneError, match="distil_layers: this model reports 3 hidden states for 3 layers"):
            # Before the first step.
            DistillationTrainer(student, teacher, coefficients=coefficients, distil_layers="last")
    else:
        train(student, teacher, family, tmp_path, None, coefficients=coefficients, distil_layers=[0, 2])


def test_a_model_that_fails_in_silence_is_refused_in_words(monkeypatch):
    """An error without a message, as `raise NotImplementedError` is."""

    def silent(*args):
        raise NotImplementedError

    monkeypatch.setattr(importlib.import_module("tritune.modeling.instrument"), "find_anatomy", silent)
    with pytest.raises(TrituneError, match=r"it cannot be run without weights \(NotImplementedError\)"):
        instrument_skeleton(SERVED["BERT"].build())


def test_mobilebert_quantizes_the_bottlenecks_of_the_layers_that_are_named():
    student = tritune.prepare(SERVED["MobileBERT"].build(), Quantization(layers=(1,)))
    quantized = {name for name, module in student.named_modules() if isinstance(module, QuantLinear)}
    for layer in (0, 1):
        bottlenecks = {f"mobilebert.encoder.layer.{layer}.bottleneck.{part}.dense" for part in ("input", "attention")}
        assert bottlenecks & quantized == (bottlenecks if layer == 1 else set())


def test_the_page_has_this_table(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    page = importlib.import_module("families_page").page()
    assert page == (DOCS / "families.md").read_text(encoding="utf-8"), "run python docs/families_page.py"
    assert all(line in page.splitlines() for line in table())
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(block, "families.md", "exec"), {})
    assert (tmp_path / "decoder" / "packed" / "model.safetensors").is_file()
