"""Parameters of tests over two tables."""

from collections.abc import Mapping

import pytest


def crossed(rows: Mapping[str, object], columns: Mapping[str, object]) -> list:
    """Pairs of a row and a column: those with the first row or the first column, and the others as slow tests."""
    first_row, first_column = next(iter(rows)), next(iter(columns))
    return [
        pytest.param(
            rows[row],
            columns[column],
            id=f"{row}-{column}",
            marks=[] if row == first_row or column == first_column else pytest.mark.slow,
        )
        for row in rows
        for column in columns
    ]
