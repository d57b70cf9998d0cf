"""Mathematics without a script: `math` fences and `$…$` become MathML while the site is built.

Browsers render MathML by themselves, so pages need nothing from a network; repository hosts render the same source.
"""

import re

from latex2mathml.converter import convert

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(`[^`\n]*`)|(?<![\\$\w])\$([^$\n]+)\$(?!\w)")


def on_page_markdown(markdown: str, page, **kwargs) -> str:
    """Put a mark in the place of every formula; Markdown must not see what is in it."""
    formulas: list[str] = []

    def mark(latex: str, display: str) -> str:
        formulas.append(convert(latex.strip(), display=display))
        return f"MATHML{len(formulas) - 1}HERE"

    def inline(match: re.Match) -> str:
        return match[1] or mark(match[2], "inline")

    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts.append(_INLINE.sub(inline, markdown[end : fence.start()]))
        parts.append(mark(fence[2], "block") if fence[1] == "math" else fence[0])
        end = fence.end()
    parts.append(_INLINE.sub(inline, markdown[end:]))
    page.formulas = formulas
    return "".join(parts)


def on_page_content(html: str, page, **kwargs) -> str:
    """Put the formulas back, those that stand alone in a block that scrolls on narrow screens."""
    for index, formula in enumerate(page.formulas):
        html = html.replace(f"<p>MATHML{index}HERE</p>", f'<div class="formula">{formula}</div>')
        html = html.replace(f"MATHML{index}HERE", formula)
    return html
