"""Tables of text: aligned columns that fit the terminal.

NAME   STATE   REQUESTS
alice  active     1,204
bob    expired        0
"""

from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import combining, east_asian_width

GAP = "  "
NARROWEST = 8
"""Columns of text are not cut below this width; the table becomes too wide instead."""


@dataclass(frozen=True, slots=True)
class Column:
    """A heading and how the cells below it stand."""

    title: str
    is_number: bool = False
    """Numbers stand to the right and are never cut."""


def render(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, width: int | None = None) -> str:
    """The table, a line for its headings and one for each row; `width=None`: as wide as it needs to be.

    In a table that is too wide the widest text columns are cut, ending in "…".
    """
    lines = [[column.title.upper() for column in columns], *rows]
    widths = [max(map(_width_of, cells)) for cells in zip(*lines, strict=True)]
    if width is not None:
        widths = _narrowed(widths, columns, width)
    return "\n".join(GAP.join(map(_cell, line, columns, widths)).rstrip() for line in lines)


def _narrowed(widths: Sequence[int], columns: Sequence[Column], width: int) -> list[int]:
    """Takes from the widest text column until the table fits or nothing may be taken any more."""
    narrowed = list(widths)
    while sum(narrowed) + len(GAP) * (len(narrowed) - 1) > width:
        widest = max(
            (place for place, column in enumerate(columns) if not column.is_number),
            key=lambda place: narrowed[place],
            default=None,
        )
        if widest is None or narrowed[widest] <= NARROWEST:
            break
        narrowed[widest] -= 1
    return narrowed


def _cell(text: str, column: Column, width: int) -> str:
    shown = _cut(text, width)
    padding = " " * (width - _width_of(shown))
    return padding + shown if column.is_number else shown + padding


def _cut(text: str, width: int) -> str:
    if _width_of(text) <= width:
        return text
    while _width_of(text) >= width:
        text = text[:-1]
    return f"{text}…"


def _width_of(text: str) -> int:
    """Places on the terminal: two for a wide East Asian character, none for a combining one."""
    return sum(0 if combining(letter) else 2 if east_asian_width(letter) in "WF" else 1 for letter in text)
