"""A report as one HTML page that loads nothing, and its tables: for generator and models alike.

Imports neither of them. Every figure is in an element with data- attributes, exact in data-value
(JSON), and the whole report is in <script type="application/json" id="report">.
"""

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

__all__ = [
    "NONE",
    "definitions",
    "figure_element",
    "json_text",
    "page",
    "row",
    "table",
    "text_cell",
]

#: A figure's cell where there is none.
NONE = '<td class="n">-</td>'


def page(
    title: str,
    style: str,
    body: Iterable[str],
    report: Any,
    *,
    scripts: bool = False,
    after: Iterable[str] = (),
) -> str:
    """The whole page; the same arguments give the same bytes.

    Parameters
    ----------
    style : a style sheet
    body : HTML, in order
    report : for JSON
    scripts : whether scripts of the page may run; it may load nothing, from anywhere
    after : HTML behind the report, such as those scripts
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; "
    policy += "script-src 'unsafe-inline'; " * scripts + "img-src data:"
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>',
            f"<style>\n{style}</style>\n</head>\n<body>\n<main>",
            *body,
            f'</main>\n<script type="application/json" id="report">{json_text(report)}</script>',
            *after,
            "</body>\n</html>\n",
        ]
    )


def json_text(value: Any) -> str:
    """JSON that cannot end its script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def definitions(entries: Mapping[str, str]) -> str:
    """A list of names and what they are."""
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries.items())
    return f'<dl class="settings">{items}</dl>'


def figure_element(data: Mapping[str, str], value: Any, shown: str, tag: str = "td") -> str:
    """An element with one figure: `data` says which, `shown` is what it shows."""
    names = " ".join(f'data-{name}="{escape(text)}"' for name, text in data.items())
    return f'<{tag} class="n" {names} data-value="{escape(json.dumps(value))}">{shown}</{tag}>'


def text_cell(text: str) -> str:
    """A cell of words."""
    return f"<td>{escape(text)}</td>"


def row(name: str, *cells: str) -> str:
    """A row of whole cells, behind its head."""
    return f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>'


def table(caption: str, head: Iterable[str], rows: Iterable[str], left: int = 1) -> str:
    """rows : as `row` has them; the first `left` columns hold words, the others figures."""
    cells = "".join(
        f'<th scope="col"{"" if i < left else _NUMBER}>{escape(h)}</th>' for i, h in enumerate(head)
    )
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption><thead><tr>{cells}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


_NUMBER = ' class="n"'
