"""A hub out of reach is asked once; what its cache holds still loads, and what it lacks is one line. No network."""

import importlib
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from huggingface_hub.utils import get_session

from families import FAMILIES
from sentence_encoder import make_encoder
from tritune import TrituneError
from tritune.checkpoints import hub
from tritune.checkpoints.hub import located, why_unreachable
from tritune.checkpoints.load import load, load_config, load_float, load_masked_lm, load_pretrained, load_tokenizer
from tritune.tasks.data import load_task_data
from tritune.tasks.heads.sentence_files import read_sentence_files
from tritune.tasks.registry import get_task, own_task

COMMIT = "a" * 40
REASON = "no way to it"


class Wire:
    """What the hub's client sends requests over: `asked` are their methods and addresses, `answer` the answers."""

    def __init__(self, answer: Callable):
        self.asked: list[str] = []
        self.answer = answer

    def __call__(self, transport, request):
        self.asked.append(f"{request.method} {request.url}")
        return self.answer(request)


@pytest.fixture
def client():
    """The library under the hub's client, whichever it is."""
    return importlib.import_module(type(get_session()).__module__.partition(".")[0])


@pytest.fixture
def wire(client, monkeypatch, tmp_path) -> Wire:
    """A hub out of reach, an empty cache, and no patience of a library that would have to wait."""

    def out_of_reach(request):
        raise client.ConnectError(f"{REASON}\nand more of it")

    wire = Wire(out_of_reach)
    monkeypatch.setattr(client.HTTPTransport, "handle_request", lambda *args: wire(*args))
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits for {seconds} s"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "data")
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    monkeypatch.chdir(tmp_path)
    return wire


def answering(client, status: int) -> Callable:
    return lambda request: client.Response(status, request=request)


@pytest.fixture
def cached(tmp_path) -> str:
    """The name of a sentence encoder that the cache holds."""
    folder = tmp_path / "cache" / "models--org--small"
    make_encoder(folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return "org/small"


LOADS = {
    "load_config": load_config,
    "load": load,
    "load_float": load_float,
    "load_masked_lm": load_masked_lm,
    "load_pretrained": lambda source: load_pretrained(FAMILIES["bert"].loader, source),
    "load_tokenizer": lambda source: load_tokenizer(source, FAMILIES["bert"].build(), 8),
}


@pytest.mark.parametrize("name", ["o1", "org/o1"])
@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS)
def test_one_request_and_one_line(loads, name, wire):
    with pytest.raises(TrituneError) as error:
        loads(name)
    expected = f"no folder {name} here, and the hub cannot be reached ({REASON}); check the name or the connection"
    assert str(error.value) == expected
    assert wire.asked == [f"HEAD https://huggingface.co/{name}/resolve/main/config.json"]


COMMANDS = {
    "predict": ["o1"],
    "evaluate": ["o1", "--task", "sst2"],
    "finetune": ["o1", "--task", "sst2", "--output", "new"],
    "train": ["o1", "--task", "sst2", "--output", "new"],
    "sweep": ["o1", "--task", "sst2", "--space", "mixing", "--output", "new"],
    "shrink": ["o1", "--layers", "0", "--output", "new"],
    "convert": ["o1", "--output", "new"],
    "export": ["o1", "--output", "new"],
    "bench": ["o1"],
    "augment": ["--task", "sst2", "--data", ".", "--mlm", "o1"],
    "analyze layers": ["--teacher", "o1", "--student", ".", "--task", "sst2"],
    "analyze heads": ["--teacher", ".", "--student", "o1", "--task", "sst2", "--output", "new"],
    "analyze curvature": ["--model", "o1", "--task", "sst2", "--output", "new"],
    "analyze sensitivity": ["--model", "o1", "--task", "sst2", "--output", "new"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_asks_once_and_says_one_line(command, wire, cli):
    code, out, err = cli(*command.split(), *COMMANDS[command])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: no folder o1 here, and the hub cannot be reached ({REASON})")
    assert len(wire.asked) == 1 and not Path("new").exists()


@pytest.mark.parametrize(
    "name", ["./o1", "../o1", ".o1", "~/o1", "~o1", "/o1", "o1/", "a/b/o1", "here/o1", "o1 2", "a--b"]
)
def test_what_is_no_hub_name_never_asks(name, wire, tmp_path):
    (tmp_path / "here").mkdir()
    with pytest.raises(TrituneError, match="there is no such folder"):
        located(name)
    with pytest.raises(TrituneError, match="there is no such folder"):
        located(Path("o1"))
    assert wire.asked == []


def test_a_folder_never_asks(wire, tmp_path):
    FAMILIES["bert"].build().save_pretrained(tmp_path / "o1")
    assert located("o1") == "o1"
    assert load_float("o1").config.model_type == "bert" and wire.asked == []


@pytest.mark.parametrize("status", [200, 302, 401, 404, 429])
def test_any_answer_is_one(status, wire, client):
    wire.answer = answering(client, status)
    assert why_unreachable("o1", "config.json") is None and located("o1") == "o1"
    assert len(wire.asked) == 2


def test_a_hub_that_fails_cannot_be_reached(wire, client):
    wire.answer = answering(client, 503)
    with pytest.raises(TrituneError, match=r"the hub cannot be reached \(it answers with error 503\)"):
        load_config("o1")
    assert len(wire.asked) == 1


def test_a_hub_that_is_silent_is_not_waited_for(wire, monkeypatch):
    asked_to_stop = threading.Event()
    wire.answer = lambda request: asked_to_stop.wait()
    monkeypatch.setattr(hub, "_PATIENCE", 0.01)
    try:
        with pytest.raises(
            TrituneError, match=r"\(no answer within 0.01 s; HF_HUB_ETAG_TIMEOUT sets how long to wait\)"
        ):
            located("o1")
    finally:
        asked_to_stop.set()


def test_who_says_so_waits_longer(wire, client, monkeypatch):
    waited = []
    wire.answer = lambda request: waited.append(request.extensions["timeout"]["read"]) or client.Response(200)
    why_unreachable("o1", "config.json")
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "30")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", 30)  # as it is read when it is imported
    why_unreachable("o1", "config.json")
    assert waited == [1.5, 30]


@pytest.mark.parametrize("offline", [False, True], ids=["out of reach", "HF_HUB_OFFLINE"])
def test_what_the_cache_holds_is_loaded(offline, wire, cached, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    folder = located(cached)
    assert folder.name == COMMIT
    model = load_float(folder)
    for reads in (load_config, load_float, read_sentence_files, lambda source: load_tokenizer(source, model, 8)):
        wire.asked.clear()
        assert str(reads(cached)) == str(reads(folder))
        assert set(wire.asked) <= {f"HEAD https://huggingface.co/{cached}/resolve/main/config.json"}
        # A model is asked for once for its config and once for its weights.
        assert len(wire.asked) == (0 if offline else 2 if reads is load_float else 1)


def test_offline_and_not_in_the_cache_is_the_same_line(wire, monkeypatch, cli):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    _, _, line = cli("predict", "o1")
    assert line.startswith("error: no folder o1 here, and the hub cannot be reached (") and "HF_HUB_OFFLINE" in line
    assert wire.asked == []


# Data sets


def test_a_task_whose_data_cannot_be_fetched_asks_once(wire):
    with pytest.raises(TrituneError) as error:
        load_task_data(get_task("sst2"))
    reason, advice = f"the hub cannot be reached: {REASON}", "give its original files with --data FOLDER"
    assert str(error.value) == f"cannot load SST-2 from the hub ({reason}): {advice}"
    assert wire.asked == ["HEAD https://huggingface.co/datasets/nyu-mll/glue/resolve/main/README.md"]


def test_a_data_set_by_its_name_asks_once(wire):
    with pytest.raises(
        TrituneError, match=r"^who/photos: no such file or folder, and .* \(the hub cannot be reached: no"
    ):
        own_task("image-classification", {"train": Path("who/photos")})
    assert len(wire.asked) == 1


@pytest.fixture
def cached_data(tmp_path) -> str:
    """The name of a data set that the cache holds, as `datasets` leaves it there."""
    built, folder = tmp_path / "built", tmp_path / "data" / "who___rows" / "default" / "0.0.0" / COMMIT
    datasets.Dataset.from_dict({"text": ["one", "two"]}).to_parquet(tmp_path / "rows.parquet")
    datasets.load_dataset("parquet", data_files={"train": str(tmp_path / "rows.parquet")}, cache_dir=str(built))
    (made,) = built.glob("parquet/*/*/*/dataset_info.json")
    shutil.copytree(made.parent, folder)
    (folder / "parquet-train.arrow").rename(folder / "rows-train.arrow")
    info = json.loads((folder / "dataset_info.json").read_text())
    info |= {"dataset_name": "rows", "config_name": "default"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return "who/rows"


@pytest.mark.parametrize("offline", [False, True], ids=["out of reach", "HF_HUB_OFFLINE"])
def test_a_data_set_in_the_cache_is_read(offline, wire, cached_data, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    wire.asked.clear()
    assert hub.load_dataset(cached_data)["train"]["text"][:] == ["one", "two"]
    assert len(wire.asked) == (0 if offline else 1)
    with pytest.raises(ConnectionError, match="the hub cannot be reached"):
        hub.load_dataset(cached_data, "another")


def test_a_hub_that_answers_is_read_as_ever(wire, client, monkeypatch):
    wire.answer = answering(client, 200)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: asked.append(args))
    hub.load_dataset("who/rows", "all")
    assert asked == [("who/rows", "all")]
