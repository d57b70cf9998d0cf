"""Eight threads get what one gets, to the bit: a service answers from a pool of them."""

import contextvars
import copy
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import AutoModelForTokenClassification, PreTrainedModel

import tritune
from combinations import crossed
from families import FAMILIES, VOCABULARY, one_layer
from test_trainer import trainer
from tritune import Intervention, Quantization, Site
from tritune.checkpoints.load import load_pretrained
from tritune.compute import held
from tritune.deploy.export.onnx import export_onnx
from tritune.modeling.forward_pass import ForwardPass, _running, checkpointed, pass_of
from tritune.modeling.instrument import instrument_of
from tritune.training.trainer import DistillationTrainer

THREADS, CALLS = 8, 50


@contextmanager
def many_switches() -> Iterator[None]:
    """Threads change places thousands of times a second instead of two hundred."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def in_threads(jobs: list[Callable[[], list[torch.Tensor]]], calls: int = CALLS) -> list[str]:
    """Run every job often in many threads at once; the calls that raised or gave other bits than one thread alone."""
    expected = [job() for job in jobs]
    faults, start = [], threading.Barrier(THREADS)

    def work(thread: int) -> None:
        start.wait()
        for call in range(calls):
            number = (thread + call) % len(jobs)
            try:
                found = jobs[number]()
            except Exception as error:
                faults.append(f"job {number} raised {type(error).__name__}: {error}")
                continue
            if not all(map(torch.equal, found, expected[number])):
                differences = [(a - b).abs().max().item() for a, b in zip(found, expected[number], strict=True)]
                faults.append(f"job {number} is off by {max(differences)}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    with many_switches():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return faults


def text(rows: int, tokens: int, seed: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


BATCHES = {
    "equal": [text(1, 12, seed) for seed in range(THREADS)],
    "mixed": [text(1 + seed % 3, 5 + seed, seed) for seed in range(THREADS)],
}


def student(family: str = "bert", seed: int = 0, **settings):
    return tritune.prepare(FAMILIES[family].build(seed), Quantization(**settings)).eval()


def shallow(seed: int = 0, **settings):
    return tritune.prepare(one_layer("bert").build(seed), Quantization(**settings)).eval()


def packed(seed: int = 0, **settings):
    return tritune.convert(shallow(seed, **settings))


PER_TOKEN = {"weight_granularity": "row", "activation_granularity": "token"}
MODELS = {
    "student": shallow,
    "packed": packed,
    "packed per token": lambda: packed(**PER_TOKEN),
    "packed in bfloat16": lambda: packed().to(torch.bfloat16),
    "student of shared layers": lambda: student("albert"),
    "student that learns its scales": lambda: shallow(weight_quantizer="lsq"),
}


@contextmanager
def autocast() -> Iterator[None]:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        yield


MODES = (torch.no_grad, torch.inference_mode, autocast)


def jobs_of(models: list[torch.nn.Module], batches: list[dict]) -> list[Callable[[], list[torch.Tensor]]]:
    """Every batch in one of the modes, by one of the models."""

    def job(number: int, batch: dict) -> list[torch.Tensor]:
        with MODES[number % len(MODES)]():
            return [models[number % len(models)](**batch).logits]

    return [lambda number=number, batch=batch: job(number, batch) for number, batch in enumerate(batches)]


@pytest.mark.parametrize(("model", "batches"), crossed(MODELS, {name: BATCHES[name] for name in ("mixed", "equal")}))
def test_answers(model, batches):
    assert in_threads(jobs_of([model()], batches)) == []


def test_two_models_at_once():
    """A student, its packed twin, another student, and a float model that is a teacher."""
    models = [shallow(), packed(), shallow(seed=1), tritune.instrument(one_layer("bert").build())]
    assert in_threads(jobs_of(models, BATCHES["equal"])) == []


@pytest.mark.parametrize("model", ["student", "student of shared layers", "student that learns its scales"])
def test_gradients(model):
    model = MODELS[model]()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def job(batch):
        loss = model(**batch).logits.square().sum()
        return [g for g in torch.autograd.grad(loss, parameters, allow_unused=True) if g is not None]

    assert in_threads([lambda batch=batch: job(batch) for batch in BATCHES["equal"]]) == []


@pytest.mark.parametrize("family", ["bert", "albert", pytest.param("modernbert", marks=pytest.mark.slow)])
@torch.no_grad()
def test_traces_and_interventions(family):
    """Some calls record, some replace, each at its own site, and some do neither."""
    teacher, own = tritune.instrument(FAMILIES[family].build(1)), student(family)
    sites = [None, *Site]

    def job(number, batch):
        with torch.no_grad():
            theirs = teacher(**batch, output_trace=True).trace
            site = sites[number % len(sites)]
            output = own(
                **batch,
                output_trace=number % 2 == 0,
                intervention=None if site is None else Intervention(site, theirs),
            )
        kept = [layer.context for layer in output.trace.layers] if number % 2 == 0 else []
        return [output.logits, *kept, *(layer.attention_probs for layer in theirs.layers)]

    jobs = [lambda n=n, batch=batch: job(n, batch) for n, batch in enumerate(BATCHES["equal"])]
    assert in_threads(jobs) == []


def elsewhere(work: Callable[[], None]) -> None:
    """Do something in another thread, as autograd does on a GPU."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.mark.parametrize("site", [None, *Site])
def test_backward_in_another_thread(site):
    """Under gradient checkpointing it computes the layers again: with the intervention and kernels of their pass."""
    batch, teacher = BATCHES["mixed"][2], tritune.instrument(FAMILIES["bert"].build(1))
    with torch.no_grad():
        theirs = teacher(**batch, output_trace=True).trace
    gradients = []
    for checkpointing in (False, True):
        own = student().train()
        if checkpointing:
            own.activation_checkpointing_enable()
        output = own(**batch, output_trace=True, intervention=site and Intervention(site, theirs))
        loss = output.logits.square().sum() + output.trace.layers[1].attention_scores.square().sum()
        if checkpointing:  # another pass, over other words and without an intervention, in between
            own(**BATCHES["mixed"][1])
            elsewhere(loss.backward)
        else:
            loss.backward()
        gradients.append({name: parameter.grad for name, parameter in own.named_parameters()})
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert (gradient is None and other is None) or torch.equal(gradient, other), name


def test_checkpointing_that_began_before_the_model_was_prepared():
    batch, teacher = BATCHES["mixed"][2], tritune.instrument(FAMILIES["bert"].build(1))
    with torch.no_grad():
        theirs = teacher(**batch, output_trace=True).trace
    float_model = FAMILIES["bert"].build()
    float_model.activation_checkpointing_enable()
    gradients = []
    for own in (student().train(), copy.deepcopy(tritune.prepare(float_model)).train()):
        own(**batch, intervention=Intervention(Site.MAP, theirs)).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in own.parameters()])
    for own, other in zip(*gradients, strict=True):
        assert (own is None and other is None) or torch.equal(own, other)


def test_layers_computed_again_are_those_they_were():
    """Layers that share weights are told apart by the calls before them, in whatever order they are computed again."""
    state = instrument_of(student("albert")).states[0]
    delayed, seen = [], []

    def layer() -> None:
        this = pass_of("owner")
        this.enter(state, state.layers)
        seen.append(this.layer)

    def checkpoint(function: Callable[[], None]) -> None:
        function()
        delayed.append(function)

    this = ForwardPass("owner")
    this.begin()
    for _ in range(3):
        checkpointed(checkpoint, layer)
    this.end()
    for function in reversed(delayed):
        function()
        elsewhere(function)
    assert seen == [0, 1, 2, 2, 2, 1, 1, 0, 0]


def test_a_model_called_in_a_hook_of_another():
    """It has a pass of its own, and so has the other one afterwards; one that fails leaves nothing behind."""
    batch, other = BATCHES["mixed"][1], BATCHES["mixed"][2]
    outer, inner = student(), student("albert", 1)
    with torch.no_grad():
        theirs = tritune.instrument(FAMILIES["bert"].build(1))(**batch, output_trace=True).trace
        call = {"output_trace": ["context"], "intervention": Intervention(Site.PROJECTION, theirs)}
        expected, alone = outer(**batch, **call), inner(**other, output_trace=["context"])
        found = []

        def hook(*_):
            with pytest.raises(tritune.TrituneError, match="unknown trace fields"):
                inner(**other, output_trace=["nonsense"])
            found.append(inner(**other, output_trace=["context"]))

        handle = outer.bert.encoder.layer[1].attention.self.register_forward_hook(hook)
        output = outer(**batch, **call)
        handle.remove()
    assert torch.equal(output.logits, expected.logits) and torch.equal(found[0].logits, alone.logits)
    for one, two in ((output, expected), (found[0], alone)):
        assert len(one.trace.layers) == len(two.trace.layers)
        assert all(torch.equal(a.context, b.context) for a, b in zip(one.trace.layers, two.trace.layers, strict=True))


def test_an_error_inside_leaves_nothing_behind():
    own, batch = student(), BATCHES["mixed"][2]
    with torch.no_grad():
        expected = own.bert(**batch)[0]
        theirs = tritune.instrument(FAMILIES["bert"].build(1))(**batch, output_trace=True).trace
        fault = own.bert.encoder.layer[2].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            own(**batch, output_trace=True, intervention=Intervention(Site.MAP, theirs))
        fault.remove()
        assert _running.get() is None
        assert torch.equal(own.bert(**batch)[0], expected)


def test_a_thread_that_inherits_held_weights():
    """Web frameworks run handlers in a copy of the context that they were called in."""
    models = [shallow(seed=seed) for seed in range(3)]
    with held.weights_held():
        context = contextvars.copy_context()
    jobs = jobs_of(models, BATCHES["equal"])
    assert in_threads([lambda job=job: context.copy().run(job) for job in jobs]) == []


def of_seed(folder, seed: int) -> DistillationTrainer:
    return trainer(
        folder, teacher=FAMILIES["bert"].build(seed), schedule="gradual", arguments_values={"data_seed": seed}
    )


def trained(own: DistillationTrainer) -> list[torch.Tensor]:
    own.train()
    return [parameter.detach() for parameter in own.model.parameters()]


def test_two_trainings_and_a_prediction(tmp_path):
    """Three threads; the models have no dropout, whose random numbers torch draws for the whole process."""
    model, batch = packed(), BATCHES["mixed"][2]
    alone = [trained(of_seed(tmp_path / f"alone {seed}", seed)) for seed in range(2)]
    # Made here: accelerate's state, which all share, is taken apart and put together when a trainer is made.
    trainers = [of_seed(tmp_path / f"together {seed}", seed) for seed in range(2)]
    with torch.no_grad():
        expected = model(**batch).logits
    found, answers, done = {}, [], threading.Event()

    def train(seed: int) -> None:
        found[seed] = trained(trainers[seed])

    @torch.no_grad()
    def predict() -> None:
        while not done.is_set():
            answers.append(model(**batch).logits)

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(2)]
    predicting = threading.Thread(target=predict)
    for thread in (*threads, predicting):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    predicting.join()
    assert answers and all(torch.equal(answer, expected) for answer in answers)
    for seed in range(2):
        assert all(map(torch.equal, found[seed], alone[seed]))


def test_one_teacher_given_to_many_threads_at_once_is_instrumented_once():
    teacher = FAMILIES["bert"].build()
    elsewhere_too = [threading.Thread(target=tritune.instrument, args=(teacher,)) for _ in range(THREADS)]
    for thread in elsewhere_too:
        thread.start()
    for thread in elsewhere_too:
        thread.join()
    with torch.no_grad():
        assert len(teacher(**BATCHES["mixed"][2], output_trace=True).trace.layers) == 3
    assert len(teacher._forward_pre_hooks) == 1


def test_a_forked_process_answers_as_its_parent():
    model, batch = packed(), BATCHES["mixed"][2]
    with torch.no_grad():
        expected = model(**batch).logits
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # whatever happens, the child must not go on with the test run
        with torch.no_grad():
            same = torch.equal(model(**batch).logits, expected)
        os.write(writing, b"same" if same else b"other")
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        assert answer.read() == b"same"
    os.waitpid(child, 0)


def test_an_exported_file_in_one_session(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    export_onnx(packed(**PER_TOKEN), tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, ["CPUExecutionProvider"])
    names = {given.name for given in session.get_inputs()}

    def job(batch):
        given = {name: tensor.numpy() for name, tensor in batch.items() if name in names}
        if "token_type_ids" in names:
            given["token_type_ids"] = torch.zeros_like(batch["input_ids"]).numpy()
        return [torch.from_numpy(session.run(None, given)[0])]

    assert in_threads([lambda batch=batch: job(batch) for batch in BATCHES["mixed"]]) == []


class Records(logging.Handler):
    """Keeps what is said to people."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


def test_loading_in_threads_leaves_the_log_of_transformers_as_it_was(tmp_path):
    FAMILIES["bert"].build().save_pretrained(tmp_path)
    logger, records = logging.getLogger("transformers"), Records()
    level = logger.level
    logger.setLevel(logging.WARNING)  # the command line, tested in this process, sets another
    logger.addHandler(records)
    start, tie_weights = threading.Barrier(THREADS), PreTrainedModel.tie_weights

    def load() -> None:
        start.wait()
        for _ in range(3):
            load_pretrained(AutoModelForTokenClassification, tmp_path, num_labels=2)

    try:
        threads = [threading.Thread(target=load) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert records.said == []
        assert PreTrainedModel.tie_weights is tie_weights, "transformers takes it away while it loads"
        AutoModelForTokenClassification.from_pretrained(tmp_path)
        assert "LOAD REPORT" in "".join(records.said), "one that is not ours tells what it always told"
    finally:
        logger.removeHandler(records)
        logger.setLevel(level)
