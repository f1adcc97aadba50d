"""What stands behind stdout: how wide it is, and what it can show.

Texts are made without colours; they are painted at the very end, and only for a terminal that wants them. So what
is piped away, tested or read aloud is the same text, and a colour never tells what a word does not.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, TextIO

WIDEST_BAR_TABLE = 120
"""Beyond this a bar is longer than the eye compares."""
PLAIN_WIDTH = 100
"""Of tables with bars that go into a file or a pipe."""

_RED, _YELLOW, _RESET = "\x1b[31m", "\x1b[33m", "\x1b[0m"
_PERCENT = re.compile(r"(?<!\S)(\d+)%")
_FAULT = re.compile(r"^FAULT", re.MULTILINE)
NEARLY_FULL, FULL = 80, 100
"""Percent of a budget from which it is shown in yellow, and in red."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """One stdout."""

    width: int | None
    """In places; `None`: no terminal, so nothing needs to be cut."""
    has_colours: bool
    has_blocks: bool
    """It can show `█` and its parts."""
    is_unicode: bool

    @classmethod
    def of(cls, stdout: TextIO, environment: Mapping[str, str]) -> Self:
        """By the stream and the environment: `NO_COLOR` (no-color.org), `TERM=dumb`, the encoding, `COLUMNS`."""
        is_terminal = stdout.isatty()
        is_plain = environment.get("NO_COLOR") or environment.get("TERM", "") in ("", "dumb")
        encoding = getattr(stdout, "encoding", None) or "utf-8"
        return cls(
            width=shutil.get_terminal_size().columns if is_terminal else None,
            has_colours=is_terminal and not is_plain,
            has_blocks=_can_show("█▏", encoding),
            is_unicode=encoding.lower().replace("-", "").startswith("utf"),
        )

    @property
    def bar_table_width(self) -> int:
        """How wide a table with bars may be."""
        return PLAIN_WIDTH if self.width is None else min(self.width, WIDEST_BAR_TABLE)

    def painted(self, text: str) -> str:
        """Faults and budgets that are used up in red, nearly used up in yellow, if it has colours."""
        if not self.has_colours:
            return text
        return _FAULT.sub(f"{_RED}FAULT{_RESET}", _PERCENT.sub(_painted_percent, text))


def _painted_percent(match: re.Match[str]) -> str:
    percent = int(match[1])
    if percent < NEARLY_FULL:
        return match[0]
    return f"{_RED if percent >= FULL else _YELLOW}{match[0]}{_RESET}"


def _can_show(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
