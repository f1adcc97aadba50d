"""What `check` has found: each thing that was looked at, and how it stands."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How a thing stands."""

    OK = "ok"
    FAULT = "fault"
    UNSEEN = "unseen"
    """It cannot be seen from where `check` runs, and the text says from where it can."""


_LABELS = {State.OK: "ok   ", State.FAULT: "FAULT", State.UNSEEN: "?    "}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. The text of a fault says what to do."""

    text: str
    state: State = State.OK

    @property
    def is_fault(self) -> bool:
        return self.state is State.FAULT

    def __str__(self) -> str:
        return f"{_LABELS[self.state]}  {self.text}"


def fault(text: str) -> Finding:
    return Finding(text, State.FAULT)


def unseen(text: str) -> Finding:
    return Finding(text, State.UNSEEN)


def summary(findings: Sequence[Finding]) -> str:
    """One line about all of them."""
    faults = sum(finding.is_fault for finding in findings)
    hidden = sum(finding.state is State.UNSEEN for finding in findings)
    told = f"{faults} of {len(findings)} checks found a fault." if faults else "No fault was found."
    if hidden:
        return f"{told} What is marked with `?` cannot be seen from here."
    return told if faults else "All is well."
