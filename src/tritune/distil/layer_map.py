"""Which layers are compared: the layer map to a deeper teacher, and the choice of `distil_layers`."""

from collections.abc import Sequence

from ..errors import TrituneError, shown
from .choices import ALL_LAYERS, check_distil_layers

_NAMES = ("uniform", "last")


def mapped_layers(choice: str | Sequence[int] | None, student: int, teacher: int) -> tuple[int, ...] | None:
    """The teacher's layer for every layer of the student, counted from 0; None where it is the student's own number.

    `uniform` gives layer i of n the teacher's layer ceil((i + 1) * m / n) - 1 of m. Counted from 1, and where n divides
    m, that is g(i) = i * m / n of TinyBERT (EMNLP Findings 2020). `last` gives the last n layers.

    >>> mapped_layers("uniform", 4, 12), mapped_layers("last", 4, 12), mapped_layers([1, 5], 2, 6)
    ((2, 5, 8, 11), (8, 9, 10, 11), (1, 5))

    Args:
        choice: `uniform`, `last`, a teacher layer for every student layer, or None for models of the same depth.
        student, teacher: how many layers each has.

    Raises:
        TrituneError: the choice is none of those, has another length than the student, names a layer that the teacher
            does not have, or is None for models of different depth.
    """
    check_layer_map(choice)
    if choice is None:
        if student != teacher:
            raise TrituneError(
                f"the student has {student} layers and the teacher {teacher}: layer_map must say which learns from "
                "which (uniform, last, or a list with a teacher layer for each of the student's)"
            )
        return None
    if isinstance(choice, str):
        if choice == "uniform":
            return tuple(-(-(layer + 1) * teacher // student) - 1 for layer in range(student))
        if student > teacher:
            raise TrituneError(f"layer_map last: the teacher has only {teacher} layers for the student's {student}")
        return tuple(range(teacher - student, teacher))
    if len(choice) != student:
        raise TrituneError(
            f"layer_map must name a teacher layer for each of the student's {student}; got {shown(list(choice))}"
        )
    if max(choice) >= teacher:
        raise TrituneError(f"layer_map: there is no layer {max(choice)}; the teacher's layers are 0 to {teacher - 1}")
    return tuple(choice)


def check_layer_map(choice: str | Sequence[int] | None) -> None:
    """Raise TrituneError for a layer map that no pair of models could follow."""
    if choice is None or (isinstance(choice, str) and choice in _NAMES):
        return
    if isinstance(choice, str) or not choice or any(type(layer) is not int or layer < 0 for layer in choice):
        named = choice if isinstance(choice, str) else list(choice)
        raise TrituneError(
            f"layer_map must be {', '.join(_NAMES)}, a list of layers counted from 0, or null; got {shown(named)}"
        )


def distilled_layers(choice: str | Sequence[int], count: int) -> tuple[int, ...] | None:
    """The layers, counted from 0, that a `distil_layers` chooses of `count`; None for `all`.

    `last` and `every-n` (the n-th layer, the 2n-th and so on) are PKD-last and PKD-skip of *Patient Knowledge
    Distillation* (EMNLP 2019).

    >>> distilled_layers("last", 6), distilled_layers("every-2", 6), distilled_layers([4, 0], 6)
    ((5,), (1, 3, 5), (0, 4))

    Raises:
        TrituneError: the choice is none of those, or names a layer that the model does not have.
    """
    check_distil_layers(choice)
    if choice == ALL_LAYERS:
        return None
    if isinstance(choice, str):
        step = count if choice == "last" else int(choice.removeprefix("every-"))
        chosen = tuple(range(step - 1, count, step))
    else:
        chosen = tuple(sorted(choice))
    if not chosen or chosen[-1] >= count:
        named = choice if isinstance(choice, str) else list(choice)
        raise TrituneError(f"distil_layers: {shown(named)}, but the model has only {count} layers (counted from 0)")
    return chosen
