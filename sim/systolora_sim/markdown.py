"""Tables of the pages in docs/results."""

from collections.abc import Iterable, Iterator, Sequence

__all__ = ["table"]


def table(head: Sequence[str], rows: Iterable[Sequence[object]], texts: int = 1) -> Iterator[str]:
    """The lines of a table whose first `texts` columns are text, the others figures."""
    yield "| " + " | ".join(head) + " |"
    yield "| " + " | ".join("---" if i < texts else "---:" for i in range(len(head))) + " |"
    for row in rows:
        yield "| " + " | ".join(str(cell) for cell in row) + " |"
    yield ""
