"""Tables of text: aligned columns that fit the terminal.

NAME   STATE   REQUESTS
alice  active     1,204
bob    expired        0
"""

from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import combining, east_asian_width

GAP = "  "
_BLOCKS = "▏▎▍▌▋▊▉█"
"""One to eight eighths of a place."""
NARROWEST = 8
"""Columns of text are not cut below this width; the table becomes too wide instead."""


@dataclass(frozen=True, slots=True)
class Column:
    """A heading and how the cells below it stand."""

    title: str
    is_number: bool = False
    """Numbers stand to the right and are never cut."""
    is_whole: bool = False
    """Nor is this text: half of it would tell nothing."""
    leave_out: int = 0
    """In a table that stays too wide, columns are left out, those with the largest figure first; 0: never."""


def render(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, width: int | None = None) -> str:
    """The table, a line for its headings and one for each row; `width=None`: as wide as it needs to be.

    In a table that is too wide the widest text columns are cut, ending in "…"; if that is not enough, or would make
    two texts look the same, columns are left out.
    """
    lines = [[column.title.upper() for column in columns], *rows]
    widths = [max(map(_width_of, cells)) for cells in zip(*lines, strict=True)]
    if width is not None:
        widths = _narrowed(widths, columns, width)
        first = max(range(len(columns)), key=lambda place: columns[place].leave_out)
        is_spoilt = _needed(widths) > width or _are_mixed_up(rows, widths)
        if is_spoilt and columns[first].leave_out:
            kept = [place for place in range(len(columns)) if place != first]
            return render(
                [columns[place] for place in kept], [[row[place] for place in kept] for row in rows], width=width
            )
    return "\n".join(GAP.join(map(_cell, line, columns, widths)).rstrip() for line in lines)


def width_of(text: str) -> int:
    """Places on the terminal that the widest line of a text takes."""
    return max(map(_width_of, text.splitlines()), default=0)


def bar(part: int, whole: int, width: int, *, has_blocks: bool) -> str:
    """A line that is as long beside `width` places as `part` is beside `whole`; what is not nothing can be seen.

    With blocks it is exact to an eighth of a place, else to a place.
    """
    steps = len(_BLOCKS) if has_blocks else 1
    length = part * width * steps // whole if whole else 0
    if part and not length:
        length = 1
    if not has_blocks:
        return "#" * length
    full, rest = divmod(length, steps)
    return "█" * full + (_BLOCKS[rest - 1] if rest else "")


def _narrowed(widths: Sequence[int], columns: Sequence[Column], width: int) -> list[int]:
    """Takes from the widest text column until the table fits or nothing may be taken any more."""
    narrowed = list(widths)
    while _needed(narrowed) > width:
        widest = max(
            (place for place, column in enumerate(columns) if not column.is_number and not column.is_whole),
            key=lambda place: narrowed[place],
            default=None,
        )
        if widest is None or narrowed[widest] <= NARROWEST:
            break
        narrowed[widest] -= 1
    return narrowed


def _are_mixed_up(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> bool:
    """Whether two texts of a column, cut to its width, look the same: `gpt-5-mini-2…` could be either of two."""
    columns = zip(*rows, strict=True)
    return any(
        len({_cut(text, width) for text in texts}) < len(texts)
        for texts, width in zip(map(set, columns), widths, strict=False)
    )


def _needed(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


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
