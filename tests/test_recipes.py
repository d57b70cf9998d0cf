"""Recipes: what ships, what differs, and every way of getting a key wrong."""

from dataclasses import asdict, fields

import pytest
import yaml

from tritune import Quantization, TrituneError
from tritune.distil.losses import LOSSES
from tritune.recipes import FinetuneRecipe, Recipe, load_recipe, shipped_recipes, to_yaml
from tritune.recipes.reader import changed, parse_overrides
from tritune.tasks.registry import TASKS, get_task

STUDENTS = sorted(set(shipped_recipes()) - {"finetune"})
PUBLISHED = {
    "ternarybert": {"block_output_coefficient": 0.0, "schedule": None},
    "ternarybert-block": {"block_output_coefficient": 1.0, "schedule": None},
    "ti-m": {"block_output_coefficient": 1.0, "schedule": "map"},
    "ti-c": {"block_output_coefficient": 1.0, "schedule": "context"},
    "ti-o": {"block_output_coefficient": 1.0, "schedule": "projection"},
    "ti-g": {"block_output_coefficient": 1.0, "schedule": "gradual"},
    "ti-inverted": {"block_output_coefficient": 1.0, "schedule": "inverted"},
    "ti-stochastic": {"block_output_coefficient": 1.0, "schedule": "stochastic"},
    "kd-map": {"attention_scores_coefficient": 0.0, "attention_map_coefficient": 1.0, "schedule": None},
    "kd-block": {"attention_scores_coefficient": 0.0, "block_output_coefficient": 1.0, "schedule": None},
    "kd-map-block": {
        "attention_scores_coefficient": 0.0,
        "attention_map_coefficient": 1.0,
        "block_output_coefficient": 1.0,
        "schedule": None,
    },
}


# Ours: what a published recipe is changed in, and why is said in its file.
_PER_TOKEN = {"activation_granularity": "token", "weight_granularity": "row"}
_EMBEDDING = {
    "logits_coefficient": 0.0,
    "attention_scores_coefficient": 0.0,
    "attention_map_coefficient": 1.0,
    "block_output_coefficient": 1.0,
    "embedding_coefficient": 1.0,
    "loss_average": "valid",
    "padding": "longest",
}
_AUTO = {"bf16": "auto"}
_BLOCK_BY_BLOCK = {
    "weight_quantizer": "quaternary",
    "weight_clip": None,
    "activation_clip": None,
    "reconstruct_steps": 300,
    "max_steps": 0,
    "padding": "longest",
}
OWN = {
    "ti-g-deploy": ("ti-g", _PER_TOKEN | _AUTO),
    "features": ("ternarybert", _EMBEDDING | _PER_TOKEN | _AUTO),
    "features-ti-g": ("features", {"schedule": "gradual"}),
    "tritune": ("ternarybert", _PER_TOKEN | _AUTO | _BLOCK_BY_BLOCK),
}


def test_what_ships():
    assert set(STUDENTS) == set(PUBLISHED) | set(OWN)


@pytest.mark.parametrize("name", OWN)
def test_own_recipes_differ_only_where_they_say(name):
    base, changes = OWN[name]
    recipe, published = asdict(load_recipe(name)), asdict(load_recipe(base))
    differs = {key: value for key, value in recipe.items() if value != published[key]}
    assert {key: differs[key] for key in differs if key not in ("name", "description")} == changes


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_differ_only_where_the_papers_do(name):
    recipe = asdict(load_recipe(name))
    base = asdict(load_recipe("ternarybert"))
    differs = {key for key in recipe if recipe[key] != base[key]}
    assert differs - {"name", "description"} == {key for key, value in PUBLISHED[name].items() if value != base[key]}
    assert {key: recipe[key] for key in PUBLISHED[name]} == PUBLISHED[name]


def test_published_numbers():
    recipe = load_recipe("ternarybert")
    assert recipe.section(Quantization) == Quantization()
    assert (recipe.learning_rate, recipe.weight_decay, recipe.warmup_ratio) == (2e-5, 0.01, 0.1)
    assert (recipe.adam_beta1, recipe.adam_beta2, recipe.adam_epsilon) == (0.9, 0.999, 1e-6)
    assert (recipe.optimizer, recipe.padding, recipe.loss_average) == ("bert_adam", "max_length", "padded")
    assert recipe.max_grad_norm == 1.0 and recipe.num_train_epochs == 3


def test_only_published_numbers_keep_float32():
    """What was published was computed in float32; everything else takes what the machine multiplies faster."""
    assert {name for name in STUDENTS if load_recipe(name).bf16 is False} == set(PUBLISHED)
    assert all(load_recipe(name).bf16 == "auto" for name in OWN)
    assert load_recipe("finetune", kind=FinetuneRecipe).bf16 == "auto"


@pytest.mark.parametrize("bf16", [True, False])
def test_auto_is_spelt_out(tmp_path, bf16):
    for overrides, fused in (([], None), (["fused_kernels=false"], False if bf16 else None)):
        recipe = load_recipe("ti-g", ["bf16=auto", *overrides])
        settled = recipe.settled(bf16)
        assert (settled.bf16, settled.fused_kernels) == (bf16, fused)
        assert settled.precision == ("bfloat16" if bf16 else "float32") and settled.has_kernels() is bf16
        (tmp_path / "mine.yaml").write_text(to_yaml(settled))
        assert load_recipe(tmp_path / "mine.yaml") == settled
    for own in ("bf16=true", "bf16=false"):
        recipe = load_recipe("ti-g", [own])
        assert recipe.settled(bf16) is recipe


def test_float16_is_asked_for_beside_auto():
    recipe = load_recipe("features", ["fp16=true"]).settled(True)
    assert (recipe.bf16, recipe.fp16, recipe.precision) == (False, True, "float16")
    assert not load_recipe("ti-g", ["fp16=true", "bf16=auto"]).has_kernels()
    with pytest.raises(TrituneError, match="fp16 and bf16 exclude each other"):
        load_recipe("features", ["fp16=true", "bf16=true"])


def test_every_loss_has_a_coefficient():
    assert set(load_recipe("ternarybert").coefficients()) == set(LOSSES)


def test_the_base_file_spells_out_every_key():
    assert set(shipped_recipes()["ternarybert"]) == {field.name for field in fields(Recipe)}
    assert set(shipped_recipes()["finetune"]) == {field.name for field in fields(FinetuneRecipe)}


@pytest.mark.parametrize("name", STUDENTS)
def test_yaml_round_trip(name, tmp_path):
    recipe = load_recipe(name, ["layers=[1, 0]", "max_length=17", "seed=7"])
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(recipe))
    assert load_recipe(path) == recipe
    assert recipe.layers == (0, 1)


def test_own_file_with_a_base(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: ti-g\nname: mine\nseed: 7\n")
    recipe = load_recipe(path, ["seed=8"])
    assert (recipe.schedule, recipe.name, recipe.seed) == ("gradual", "mine", 8)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_stps=3", "unknown key 'max_stps'; did you mean max_steps"),
        ("zzz=3", "unknown key 'zzz'"),
        ("max_steps", "key=value"),
        ("max_steps=a", "max_steps must be a whole number"),
        ("max_steps=1.5", "max_steps must be a whole number"),
        ("max_steps=true", "max_steps must be a whole number"),
        ("max_steps=0", "max_steps must be at least 1"),
        ("learning_rate=.nan", "learning_rate must be a number"),
        ("learning_rate=-1", "learning_rate must be positive"),
        ("pooler=1", "pooler must be true or false"),
        ("bf16=maybe", "bf16 must be true, false or auto; got 'maybe'"),
        ("bf16=1", "bf16 must be true or false or text"),
        ("weight_bits=0", "weight_bits must be a whole number from 1 to 8"),
        ("weight_bits=9", "weight_bits must be a whole number from 1 to 8"),
        ("activation_bits=16", "activation_bits must be a whole number from 2 to 8"),
        ("weight_clip=0", "weight_clip must be a positive number, or null for no clip"),
        ("activation_clip=.inf", "activation_clip must be a number or null"),
        ("weight_granularity=token", "weight_granularity must be one of tensor, row"),
        ("padding=left", "padding must be one of"),
        ("schedule=sometimes", "schedule must be one of"),
        ("optimizer=sgd", "optimizer must be one of"),
        ("layers=3", "layers must be a list of whole numbers or null"),
        ("layers=[a]", "layers must be a list of whole numbers or null"),
        ("seed=-1", "seed must be a whole number from 0"),
        ("name=[", "not a YAML value"),
        ("num_train_epochs=1e308", "num_train_epochs must be above 0 and at most a million"),
        ("schedule=" + 99 * "x", "got 'x{20,30}\\.{3}x{20,30}'$"),
        ("warmup_ratio=1", "warmup_ratio must be at least 0 and below 1"),
        ("logits_coefficient=-1", "logits_coefficient must not be negative"),
        ("temperature=0", "temperature must be positive"),
        ("temperature=hot", "temperature must be a number"),
        ("distil_layers=first", "distil_layers must be all, last, every-2"),
        ("distil_layers=every-1", "distil_layers must be all, last, every-2"),
        ("distil_layers=[]", "distil_layers must name layers once each"),
        ("distil_layers=[1, 1]", "distil_layers must name layers once each"),
        ("distil_layers=[-1]", "distil_layers must name layers once each"),
        ("distil_layers=2", "distil_layers must be text or a list of whole numbers"),
    ],
)
def test_bad_overrides(override, message):
    with pytest.raises(TrituneError, match=message.replace("[", r"\[")):
        load_recipe("ti-g", [override])


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["schedule=null", "step_one_steps=5"], "step_one_steps"),
        (["max_steps=5", "num_train_epochs=1"], "num_train_epochs"),
        (["weight_bits=null", "weight_granularity=row"], "weight_granularity"),
        (["weight_bits=4", "threshold_factor=0.5"], "threshold_factor"),
        (["activation_bits=null", "attention_products=false"], "attention_products"),
        (["embeddings=false", "embedding_granularity=tensor"], "embedding_granularity"),
        (["logits_coefficient=0", "temperature=2"], "temperature"),
        (
            [*(f"{name}_coefficient=0" for name, loss in LOSSES.items() if loss.fields), "distil_layers=last"],
            "distil_layers",
        ),
    ],
)
def test_unused_keys_are_errors(overrides, key):
    with pytest.raises(TrituneError, match=f"{key} would change nothing"):
        load_recipe("ti-g", overrides)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("activation_bits=null",), "activation_clip"),
        (("activation_quantizer=lsq", "activation_granularity=tensor"), "activation_clip"),
        (("weight_quantizer=lsq",), "weight_clip"),
    ],
)
def test_what_an_override_makes_useless_is_no_mistake_of_the_recipe(overrides, key, tmp_path):
    recipe = load_recipe("tritune", overrides)
    assert getattr(recipe, key) == getattr(Recipe(), key)
    written = tmp_path / "recipe.yaml"
    written.write_text(to_yaml(recipe), "utf-8")
    assert load_recipe(written) == recipe
    assert changed(load_recipe("tritune"), parse_overrides(overrides), "a point") == recipe


def test_what_is_useless_without_the_override_too_is_an_error(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("base: ti-g\nfused_kernels: true\nactivation_granularity: token\nweight_granularity: row\n", "utf-8")
    with pytest.raises(TrituneError, match="fused_kernels would change nothing"):
        load_recipe(own, ("activation_bits=null",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "must be a list of"),
        ("name: [\n", "line 2: not YAML"),
        ("nam: x\n", "unknown key 'nam'; did you mean name"),
        ("base: nowhere\n", "there is no recipe 'nowhere'"),
        ("", "must be a list of"),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(TrituneError, match=message):
        load_recipe(path)


def test_missing_and_circular_files(tmp_path):
    with pytest.raises(TrituneError, match="did you mean 'ti-g'"):
        load_recipe("ti_g")
    with pytest.raises(TrituneError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")
    path = tmp_path / "a.yaml"
    path.write_text(f"base: {path}\n")
    with pytest.raises(TrituneError, match="leads back to itself"):
        load_recipe(path)


def test_no_loss_at_all():
    zero = [f"{name}_coefficient=0" for name in LOSSES]
    with pytest.raises(TrituneError, match="nothing to train on"):
        load_recipe("ti-g", zero)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_resolve_takes_the_task_table(task):
    recipe = load_recipe("ti-g").resolve(task, train_rows=1000)
    assert recipe.max_length == task.max_length
    assert recipe.per_device_train_batch_size == recipe.per_device_eval_batch_size == task.batch_size
    assert recipe.eval_steps == task.eval_steps
    assert recipe.max_steps == 3 * -(-1000 // task.batch_size)
    assert yaml.safe_load(to_yaml(recipe))["max_length"] == task.max_length


@pytest.mark.parametrize(
    ("task", "layers", "total", "split"),
    [
        ("sst2", 6, 1000, (60, 940)),
        ("sst2", 4, 1000, (120, 880)),
        ("cola", 6, 1000, (120, 880)),
        ("sst2", 6, 115, (28, 87)),
        ("sst2", 6, 2, (1, 1)),
    ],
)
def test_split_of_the_budget(task, layers, total, split):
    recipe = load_recipe("ti-g", [f"max_steps={total}"])
    in_force = recipe.with_split(get_task(task), layers)
    assert (in_force.step_one_steps, total - in_force.step_one_steps) == split
    assert load_recipe("ternarybert", [f"max_steps={total}"]).with_split(get_task(task), layers).step_one_steps is None


def test_split_override_and_too_short_budget():
    sst2 = get_task("sst2")
    assert load_recipe("ti-g", ["max_steps=10", "step_one_steps=6"]).with_split(sst2, 6).step_one_steps == 6
    for overrides in (["max_steps=1"], ["max_steps=10", "step_one_steps=10"]):
        with pytest.raises(TrituneError, match="raise max_steps"):
            load_recipe("ti-g", overrides).with_split(sst2, 6)
