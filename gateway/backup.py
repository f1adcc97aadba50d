"""`backup`: a copy of the data, while a server may be running, and what it means to go back to it."""

from pathlib import Path

import aiosqlite

from gateway.admin import Answer
from gateway.copies import copy_database
from gateway.core.amounts import show_time

# The running totals, because counting the rows of a large ledger takes a while.
COUNT_CONTENTS = "SELECT count(*), ifnull(sum(total_requests), 0) FROM key"

RESTORING = (
    "Restoring it brings back what was so then: keys that were deleted since, with their usage (delete them again);"
    " secrets that were rotated since (rotate them again); keys that were disabled since; limits as they were.",
    "What was used since is forgotten, and no longer counts against any budget.",
)


async def back_up(connection: aiosqlite.Connection, target: Path, now_ms: int) -> Answer:
    """Says what is in it, and what restoring it would revive. Raises `OSError` if the file is there or cannot be
    written."""
    ((keys, requests),) = await connection.execute_fetchall(COUNT_CONTENTS)
    size_bytes = await copy_database(connection, target)
    return Answer(
        value={"file": str(target), "bytes": size_bytes, "keys": keys, "requests": requests, "at": now_ms},
        talk=(
            f"Wrote {target} ({size_bytes:,} bytes): all of the database as of {show_time(now_ms)}.",
            f"It holds {_counted(keys, 'key')} with limits and names, hashes of their secrets (no key can be read"
            f" from them), and the counts of {_counted(requests, 'request')}. It holds no configuration, and no"
            " credential of a provider.",
            *RESTORING,
        ),
    )


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
