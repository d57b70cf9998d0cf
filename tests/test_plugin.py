"""`import tritune` is light, and transformers knows tritune whichever of the two is imported first."""

import ast
import importlib
import inspect
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification as Auto

import tritune
from families import FAMILIES
from tritune.checkpoints import registration as plugin
from tritune.deploy.export.dense import dense, export_dense

BERT = FAMILIES["bert"]
# Loads the folders it is given, in a process of its own that `setup` begins.
LOAD = """
import json, sys, warnings
warnings.simplefilter("error", ImportWarning)
{setup}
from transformers import AutoModelForSequenceClassification as Auto
loaded = [Auto.from_pretrained(folder) for folder in sys.argv[1:]]
print(json.dumps([type(model.hf_quantizer).__name__ for model in loaded]))
"""
ORDERS = {
    "tritune first": "import tritune",
    "transformers first": "import transformers\nimport tritune",
    "the models first": "import transformers.models.bert.modeling_bert\nimport tritune",
    # A module of its own that imports transformers first, and that what reads a checkpoint needs.
    "attention": "import tritune.modeling.attention",
    "names": "from tritune import *\nassert callable(convert)",
}
# Each is a process that loads torch; the others are slow tests.
FAST = ("the models first",)


def run(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """A QAT and a packed checkpoint."""
    folder = tmp_path_factory.mktemp("saved")
    student = tritune.prepare(BERT.build())
    student.save_pretrained(folder / "qat")
    tritune.convert(student).save_pretrained(folder / "packed")
    return [folder / "qat", folder / "packed"]


@pytest.mark.parametrize(
    "setup",
    [pytest.param(way, id=name, marks=[] if name in FAST else pytest.mark.slow) for name, way in ORDERS.items()],
)
def test_auto_classes_load_in_whatever_order_the_two_are_imported(setup, folders):
    assert json.loads(run(LOAD.format(setup=setup), *folders)) == ["TrituneQuantizer"] * 2


def test_without_tritune_nothing_but_a_dense_model_loads(folders, tmp_path):
    """The attention function stops the load and names tritune; where somebody took it away, the packed shapes do."""
    Auto.from_pretrained(folders[0]).save_pretrained(tmp_path / "again")
    shutil.copytree(folders[1], tmp_path / "shapes")
    config = json.loads((folders[1] / "config.json").read_text())
    del config["attn_implementation"]
    (tmp_path / "shapes" / "config.json").write_text(json.dumps(config))
    student = tritune.prepare(BERT.build())
    export_dense(student, tmp_path / "dense")
    code = """
import sys, torch
from transformers import AutoModelForSequenceClassification as Auto
for folder in sys.argv[1:]:
    try: print(Auto.from_pretrained(folder).eval()(input_ids=torch.tensor([[3, 4, 5]])).logits[0].tolist())
    except Exception as error: print(type(error).__name__, " ".join(str(error).split()))
assert not any(name.startswith("tritune") for name in sys.modules)
"""
    loaded = run(code, *folders, tmp_path / "again", tmp_path / "shapes", tmp_path / "dense").splitlines()
    assert all("Error" in line and "tritune" in line for line in loaded[:3])
    assert "Error" in loaded[3] and "size" in loaded[3]
    expected = dense(student).eval()(input_ids=torch.tensor([[3, 4, 5]])).logits[0]
    assert torch.allclose(torch.tensor(json.loads(loaded[4])), expected, atol=1e-5)


def test_importing_tritune_imports_neither_torch_nor_transformers():
    code = "import sys, tritune; tritune.TrituneError, dir(tritune); print(*sys.modules)"
    assert not {"torch", "transformers", "numpy", "yaml"} & set(run(code).split())


def test_a_process_that_is_spawned_loads_too(folders, tmp_path):
    code = """
import multiprocessing, sys
import tritune

def load(folder):
    from transformers import AutoModelForSequenceClassification
    return type(AutoModelForSequenceClassification.from_pretrained(folder).hf_quantizer).__name__

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(load, sys.argv[1:]))
"""
    (tmp_path / "job.py").write_text(code)
    command = [sys.executable, str(tmp_path / "job.py"), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["['TrituneQuantizer', 'TrituneQuantizer']"], done.stderr


def test_a_float_model_takes_the_attention_function_before_any_module_of_it_is_imported(tmp_path):
    model, batch = BERT.build().eval(), BERT.batch()
    model.save_pretrained(tmp_path)
    torch.save(batch, tmp_path / "batch.pt")
    code = (
        "import sys, torch, tritune; from transformers import AutoModelForSequenceClassification as Auto\n"
        "model = Auto.from_pretrained(sys.argv[1], attn_implementation='tritune').eval()\n"
        "assert 'tritune.modeling.attention' not in sys.modules\n"
        "batch = torch.load(sys.argv[1] + '/batch.pt')\n"
        "torch.save([model(**batch).logits.detach() for _ in range(2)], sys.argv[1] + '/logits.pt')\n"
    )
    run(code, tmp_path)
    model.set_attn_implementation("eager")
    expected = model(**batch).logits
    assert all(torch.equal(logits, expected) for logits in torch.load(tmp_path / "logits.pt"))


# In this process: a package that stands for transformers, with a module of one of the names.


@pytest.fixture
def package(tmp_path, monkeypatch):
    """`imitation.tables`, with a step of ours that counts what it was called with."""
    (tmp_path / "imitation").mkdir()
    (tmp_path / "imitation" / "__init__.py").write_text("")
    (tmp_path / "imitation" / "tables.py").write_text("import time\ntime.sleep(0.01)\nTABLE = {}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [one for one in sys.meta_path if not isinstance(one, plugin._Finder)])
    calls = []
    monkeypatch.setattr(plugin, "_STEPS", {"imitation.tables": lambda module: calls.append(module.TABLE)})
    yield calls
    for name in ("imitation.tables", "imitation"):
        sys.modules.pop(name, None)


def test_the_step_is_taken_once_when_the_module_is_imported(package):
    plugin.install()
    import imitation

    assert package == []
    tables = importlib.import_module("imitation.tables")
    importlib.import_module("imitation.tables")
    assert package == [tables.TABLE] and package[0] is tables.TABLE and imitation.tables is tables


def test_the_step_is_taken_at_once_where_the_module_is_there(package):
    tables = importlib.import_module("imitation.tables")
    plugin.install()
    assert package == [tables.TABLE]


def test_the_module_is_left_as_it_would_be(package):
    plugin.install()
    assert importlib.util.find_spec("imitation.tables").loader.get_filename().endswith("tables.py")
    tables = importlib.import_module("imitation.tables")
    assert type(tables.__loader__) is type(tables.__spec__.loader) is importlib.machinery.SourceFileLoader
    assert "TABLE" in inspect.getsource(tables)


def test_a_module_that_is_not_there_is_not_found(package, tmp_path):
    (tmp_path / "imitation" / "tables.py").unlink()
    importlib.invalidate_caches()
    plugin.install()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("imitation.tables")
    assert package == []


def test_many_threads_import_one_module_whose_step_is_taken_once(package):
    plugin.install()
    seen = []

    def load():
        # Whoever has the module finds the step taken.
        importlib.import_module("imitation.tables")
        seen.append(len(package))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 8


def test_two_finders_do_not_call_each_other(package):
    plugin.install()
    plugin.install()
    importlib.import_module("imitation.tables")
    assert package and sum(isinstance(finder, plugin._Finder) for finder in sys.meta_path) == 2


def test_the_names_that_type_checkers_see_are_those_that_load():
    tree = ast.parse(Path(tritune.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted(seen) == tritune.__all__ and set(tritune.__all__) <= set(dir(tritune))
    for name, module in seen.items():
        assert getattr(tritune, name) is getattr(importlib.import_module(f"tritune.{module}"), name)


def test_a_name_that_is_none_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = tritune.quantise


def test_the_tables_of_transformers_hold_what_it_looks_up():
    from transformers.quantizers import auto

    assert plugin.NAME in transformers.AttentionInterface._global_mapping
    assert plugin.NAME in transformers.AttentionMaskInterface._global_mapping
    section = tritune.TrituneConfig(quantization=tritune.Quantization(weight_bits=4)).to_dict()
    read = auto.AutoQuantizationConfig.from_dict(section)
    assert type(read) is tritune.TrituneConfig and read.quantization.weight_bits == 4
    assert type(auto.AutoHfQuantizer.from_config(read)).__module__ == "tritune.checkpoints.plugin"
