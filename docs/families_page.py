"""Writes the table of `families.md` from the table that the tests run over: `python docs/families_page.py`."""

import re
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("families.md")
MARKED = re.compile(r"(?<=<!-- table -->\n\n).*?(?=\n\n<!-- end of table -->)", re.DOTALL)


def page() -> str:
    """The page with its table made anew."""
    tests = str(Path(__file__).parents[1] / "tests")
    sys.path.insert(0, tests)
    try:
        from zoo import table
    finally:
        sys.path.remove(tests)
    return MARKED.sub(lambda _: "\n".join(table()), PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
