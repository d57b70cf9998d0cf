"""The names of tasks, kinds of tasks and problems, by which mistyped ones are refused without importing torch."""

import difflib

from ..errors import TrituneError, shown

# The rows of `registry.TASKS`: the name, as the hub spells it, and the title, as papers do.
TITLES = {
    "cola": "CoLA",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "stsb": "STS-B",
    "qqp": "QQP",
    "mnli": "MNLI",
    "qnli": "QNLI",
    "rte": "RTE",
    "wnli": "WNLI",
    "features": "Features",
    "demo": "Demo",
    "squad": "SQuAD 1.1",
    "squad_v2": "SQuAD 2.0",
    "conll2003": "CoNLL-2003",
    "cifar10": "CIFAR-10",
}
# The rows of `heads.HEADS`.
KINDS = (
    "text-classification",
    "question-answering",
    "token-classification",
    "feature-extraction",
    "image-classification",
)
# What a label column may pose.
PROBLEMS = ("single_label", "multi_label", "regression")


def is_task_file(name: str) -> bool:
    """Whether `--task` names a file instead of a task.

    >>> is_task_file("teacher/task.yaml"), is_task_file("sst2")
    (True, False)
    """
    return name.lower().endswith((".yaml", ".yml"))


def task_name(name: str) -> str:
    """The name in the table of a task that is named in any case, as the hub spells it or as papers do.

    Raises:
        TrituneError: there is no such task; the message lists the known ones.

    >>> task_name("STS-B")
    'stsb'
    """
    known = {_letters(spelling): own for own, title in TITLES.items() for spelling in (title, own)}
    if _letters(name) in known:
        return known[_letters(name)]
    if name in KINDS:
        raise TrituneError(
            f"--task {name} is a kind of task: give a task file, or its files with --train-file and --dev-file"
        )
    close = difflib.get_close_matches(_letters(name), TITLES, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise TrituneError(
        f"there is no task {name!r}: {hint}known tasks are {', '.join(TITLES)}; kinds of tasks for your own files are "
        f"{', '.join(KINDS)}"
    )


def check_problem(problem: str | None) -> None:
    """Raise TrituneError for an unknown problem; None goes by the label column."""
    if problem is not None and problem not in PROBLEMS:
        raise TrituneError(f"problem: {shown(problem)} is not one of {', '.join(PROBLEMS)}")


def _letters(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
