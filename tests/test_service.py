"""The service of docs/deploy.md, as it stands there: its answers are the engine's, from many threads at once."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import tritune.engine
from engine_folders import save_reader, sentences

PAGE = Path(__file__).parents[1] / "docs" / "deploy.md"
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODEL = '"demo/small-mine"'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_reader("BERT", "ForSequenceClassification", tmp_path_factory.mktemp("service") / "packed")


@pytest.fixture(scope="module")
def client(folder):
    testclient = pytest.importorskip("fastapi.testclient", reason="needs fastapi")
    (source,) = (block for block in FENCE.findall(PAGE.read_text(encoding="utf-8")) if "FastAPI(" in block)
    assert MODEL in source and sum(bool(line) for line in source.splitlines()) <= 15, "fifteen lines"
    names: dict = {}
    exec(compile(source.replace(MODEL, repr(str(folder))), "service.py", "exec"), names)
    with testclient.TestClient(names["app"]) as client:
        yield client


@pytest.mark.native
def test_the_service_answers_as_the_engine_does(client, folder):
    model, texts = tritune.engine.load(folder), ["what is Arles", "", *sentences(6)]
    assert client.post("/predict", json=texts).json() == model.predict(texts)
    embeddings = np.array(client.post("/encode", json=texts).json(), np.float32)
    assert np.array_equal(embeddings, model.encode(texts))
    assert client.post("/predict", json=[]).json() == [] == client.post("/encode", json=[]).json()


@pytest.mark.native
def test_requests_at_the_same_time(client, folder):
    requests = [sentences(3, seed=seed) for seed in range(24)]
    expected = [tritune.engine.load(folder).predict(texts) for texts in requests]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda texts: client.post("/predict", json=texts).json(), requests)) == expected


@pytest.mark.native
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'["fine", "\\ud800"]', "texts[1]: is no valid Unicode at character 0"),
        (b'"one text"', "valid list"),
        (b"[1, 2]", "valid string"),
        (b"nonsense", "JSON"),
    ],
)
def test_bad_requests(client, content, reason):
    for path in ("/predict", "/encode"):
        answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422 and reason in answer.text, answer.text
