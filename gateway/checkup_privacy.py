"""`check --privacy`: does the privacy policy tell of every column that the database really has."""

import aiosqlite

from gateway.admin import Answer
from gateway.core import policy
from gateway.core.findings import Finding, State, fault
from gateway.core.policy import Column, Gaps
from gateway.reports import read_columns

MISSING_LINE = "has no line in the policy: describe it in gateway/core/policy.py, or drop it"
MISSING_COLUMN = "has a line in the policy, but the database has no such column"


async def check_privacy(connection: aiosqlite.Connection) -> Answer:
    """Each column of the database beside what the privacy page says of it. A fault: one of the two is missing."""
    columns = await read_columns(connection)
    gaps = policy.check(columns)
    findings = _privacy_findings(columns, gaps)
    faults = sum(finding.is_fault for finding in findings)
    return Answer(
        value={
            "columns": [
                {"table": table, "column": name, "line": policy.LINES.get((table, name))} for table, name in columns
            ],
            "without_line": list(map(_column_name, gaps.missing)),
            "without_column": list(map(_column_name, gaps.stale)),
        },
        text="\n".join(map(str, findings)),
        talk=(
            f"The privacy policy and the database differ in {faults} of {len(findings)} columns."
            if faults
            else f"The policy of {policy.LAST_UPDATED} tells of all {len(columns)} columns, and of no other.",
        ),
        is_failure=faults > 0,
    )


async def check_policy(connection: aiosqlite.Connection) -> Finding:
    """The same in one line."""
    columns = await read_columns(connection)
    gaps = policy.check(columns)
    if gaps.missing or gaps.stale:
        differing = ", ".join(map(_column_name, gaps.missing + gaps.stale))
        return fault(f"the privacy policy and the database differ in {differing}: see `check --privacy`")
    return Finding(f"the privacy policy tells of all {len(columns)} columns, and of no other")


def _privacy_findings(columns: list[Column], gaps: Gaps) -> list[Finding]:
    """A line for each column, then one for each line of the policy whose column is not there."""
    width = max(map(len, map(_column_name, [*columns, *gaps.stale])))
    said = policy.LINES | dict.fromkeys(gaps.missing, MISSING_LINE) | dict.fromkeys(gaps.stale, MISSING_COLUMN)
    return [
        Finding(
            f"{_column_name(column):{width}}  {said[column]}",
            State.FAULT if column in gaps.missing + gaps.stale else State.OK,
        )
        for column in [*columns, *gaps.stale]
    ]


def _column_name(column: Column) -> str:
    return ".".join(column)
