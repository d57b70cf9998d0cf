"""The bars of other libraries, which would fight with our own progress, are off while a call takes."""

from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from transformers.utils import logging


@contextmanager
def without_bars() -> Iterator[None]:
    """Switch off the bars of `datasets` and transformers; both know one switch for the process, which is put back."""
    data, models = not datasets.are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if data:
            datasets.enable_progress_bars()
        if models:
            logging.enable_progress_bar()
