"""The promises under fault, at full size: `make prove`. Its last lines are the figures.

The small version of each runs in `make test`; here are the numbers of DESIGN and of the issues, and the clock.
"""

from collections.abc import Callable

import pytest

from tests.conftest import alice, database, http, origin, provider

__all__ = ["alice", "database", "http", "origin", "provider"]

_FIGURES: list[tuple[str, str]] = []

Figure = Callable[[str, str], None]


@pytest.fixture
def figure() -> Figure:
    """`figure("P4", "answers seen whole and missing in the ledger: 0 of 9,120")`: a line of the summary."""
    return lambda promise, text: _FIGURES.append((promise, text))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("figures")
    for promise, text in sorted(_FIGURES, key=lambda line: line[0]):
        terminalreporter.write_line(f"{promise:5} {text}")
