"""What Markdown would misread in docstrings, rewritten for the reference page.

Doctests become code blocks, for `>>>` would be a quotation; `first, second: text` in a list of arguments becomes two
entries.
"""

import re

import griffe

_DOCTEST = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)
_GROUP = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +\S.*)*)", re.MULTILINE)


def _one_by_one(match: re.Match) -> str:
    indent, names, text = match.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))


class ReadableDocstrings(griffe.Extension):
    """Puts fences around doctests and takes groups of names apart."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Change the docstring of one object in place."""
        if obj.docstring is not None:
            text = _DOCTEST.sub(lambda match: f"```pycon\n{match[0]}\n```", obj.docstring.value)
            obj.docstring.value = _GROUP.sub(_one_by_one, text)
