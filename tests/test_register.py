"""Quantizers, losses and schedules of a user's own: where their names work, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

import tritune
from families import FAMILIES
from tritune import Quantization, Site, TrituneError
from tritune.distil.choices import REGISTERED_LOSSES, check_loss
from tritune.distil.losses import LOSSES
from tritune.distil.schedule import SCHEDULES
from tritune.quant import QUANTIZERS, Quantizer, Ternary
from tritune.recipes import load_recipe, to_yaml


@pytest.fixture(autouse=True)
def _tables_as_they_were():
    kept = [(table, dict(table)) for table in (QUANTIZERS, SCHEDULES, REGISTERED_LOSSES)]
    yield
    for table, rows in kept:
        table.clear()
        table.update(rows)


def zero(pair):
    return torch.zeros(())


WAYS = {
    "register_quantizer": (tritune.register_quantizer, type("Mine", (Ternary,), {}), "twn"),
    "register_loss": (tritune.register_loss, zero, "hidden_states"),
    "register_schedule": (tritune.register_schedule, lambda step, steps, seed: Site.MAP, "gradual"),
}
every_way = pytest.mark.parametrize("way", WAYS)


@every_way
def test_a_name_is_taken_once(way):
    register, mine, shipped = WAYS[way]
    assert register("mine")(mine) is mine, "the decorator leaves what it decorates as it is"
    with pytest.raises(TrituneError, match=f"{way}: the name mine is taken"):
        register("mine")(mine)
    assert register("mine", exist_ok=True)(mine) is mine
    for options in ({}, {"exist_ok": True}):
        with pytest.raises(TrituneError, match=f"{way}: the name {shipped} is taken"):
            register(shipped, **options)(mine)
    for wrong in ("", "my-own", "a.b", "two words", 3, None):
        with pytest.raises(TrituneError, match=f"{way}: a name is made of letters"):
            register(wrong)(mine)


@every_way
def test_what_cannot_be_used_is_refused(way):
    with pytest.raises(TrituneError, match=f"{way}: mine must be a (function|subclass)"):
        WAYS[way][0]("mine")(3)
    assert "mine" not in {*QUANTIZERS, *SCHEDULES, *LOSSES}


def test_a_quantizer_serves_something_and_a_loss_reads_what_there_is():
    with pytest.raises(TrituneError, match="must serve some weight_bits or activation_bits"):
        tritune.register_quantizer("mine")(type("Mine", (Quantizer,), {}))
    for fields in (["attention"], "context"):
        with pytest.raises(TrituneError, match=r"the fields of mine must be of attention_block_output, .*; got"):
            tritune.register_loss("mine", fields=fields)(zero)


def test_a_recipe_takes_the_names():
    for register, mine, _ in WAYS.values():
        register("mine")(mine)
    own = ["weight_quantizer=mine", "schedule=mine", "losses={mine: 0.5}"]
    recipe = load_recipe("ti-g", own)
    assert recipe.coefficients()["mine"] == 0.5 and recipe.schedule == "mine"
    check_loss("mine", teacher=object())
    assert "losses:\n  mine: 0.5\n" in to_yaml(recipe)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("weight_quantizer=mine", "must be one of .* .*--plugin.*; got 'mine'"),
        ("schedule=mine", "must be one of .* .*--plugin.*; got 'mine'"),
        ("losses={mine: 0.5}", "losses: unknown loss 'mine'; registered are none .*--plugin"),
        ("losses={logits: 0.5}", "losses: logits ships with tritune; its key is logits_coefficient"),
        ("losses=[1]", "losses must be a mapping or null"),
    ],
)
def test_unknown_names_say_what_is_missing(override, message):
    with pytest.raises(TrituneError, match=message):
        load_recipe("ti-g", [override])


@pytest.mark.parametrize("value", ["-1", "text", "true", "null"])
def test_a_coefficient_is_a_number(value):
    tritune.register_loss("mine")(zero)
    with pytest.raises(TrituneError, match="losses: mine must be a number that is not negative"):
        load_recipe("ti-g", [f"losses={{mine: {value}}}"])


def test_a_quantizer_of_ones_own_does_what_the_one_does_that_it_is(tmp_path):
    """Trained weights, packed and read back: to the bit what the shipped class gives under its own name."""
    tritune.register_quantizer("mine")(type("Mine", (Ternary,), {}))
    batch, logits = FAMILIES["bert"].batch(), []
    for name in ("twn", "mine"):
        student = tritune.prepare(FAMILIES["bert"].build().eval(), Quantization(weight_quantizer=name))
        tritune.convert(student).save_pretrained(tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["quantization_config"]["weight_quantizer"] == name
        logits += [student(**batch).logits, tritune.load(tmp_path / name)(**batch).logits]
    assert torch.equal(logits[0], logits[2]) and torch.equal(logits[1], logits[3])
    del QUANTIZERS["mine"]
    with pytest.raises(TrituneError, match=r"--plugin.*; got 'mine'"):
        tritune.load(tmp_path / "mine")


# `--plugin`


def test_a_plugin_is_imported_before_the_recipe_is_read(cli, tmp_path):
    source = "import tritune\ntritune.register_schedule('mine')(lambda step, steps, seed: tritune.Site.MAP)\n"
    (tmp_path / "my_plugin.py").write_text(source)
    arguments = ("train", "no-teacher", "--task", "sst2", "--set", "schedule=mine", "--output", tmp_path / "run")
    assert "must be one of" in cli(*arguments)[2]
    assert "must be one of" not in cli(*arguments, "--plugin", tmp_path / "my_plugin.py")[2]
    assert "mine" in SCHEDULES


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("no_such_module", None, "ModuleNotFoundError: No module named 'no_such_module'"),
        ("missing.py", None, "there is no such file"),
        ("random.py", "", "another module is called random"),
        ("broken.py", "1 / 0\n", "ZeroDivisionError: division by zero"),
        ("syntax.py", "def\n", "SyntaxError"),
        ("taken.py", "import tritune\ntritune.register_schedule('gradual')(print)\n", "the name gradual is taken"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_one_line(cli, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    plugin = tmp_path / name if name.endswith(".py") else name
    code, _, err = cli("recipes", "--plugin", plugin)
    assert code == 2 and err.startswith(f"error: --plugin {plugin}: ") and message in err
    assert len(err.strip().splitlines()) == 1


def test_every_command_takes_plugins(cli):
    from typer.main import get_command

    from tritune.cli.main import app

    commands = dict(get_command(app).commands)
    assert commands.pop("doctor"), "which looks at the machine alone"
    commands |= {f"analyze {name}": command for name, command in commands.pop("analyze").commands.items()}
    assert len(commands) == 23 and all(
        "plugin" in {one.name for one in command.params} for command in commands.values()
    )


def test_modules_of_the_working_folder_are_found(cli, tmp_path, monkeypatch):
    """As `python -m` finds them; the console script alone would not."""
    monkeypatch.chdir(tmp_path)
    Path("found_here.py").write_text("raise ValueError('I was imported')\n")
    assert "--plugin found_here: ValueError: I was imported" in cli("recipes", "--plugin", "found_here")[2]
