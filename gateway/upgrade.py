"""Bringing a database of an older version to the current schema: only a server does so, at its start.

A copy of the file as it was is left beside it, for going back. The next `key delete` removes it.
"""

from pathlib import Path

from gateway import copies, database
from gateway.database import SCHEMA_VERSION

STEPS = {
    1: ("ALTER TABLE request ADD COLUMN upstream TEXT",),
}
"""The statements that lead from each version to the next."""


async def upgrade(path: Path) -> bool:
    """Whether it was needed; all or nothing. Raises `DatabaseError`, or `OSError` if the copy cannot be written."""
    async with database.connect_as_it_is(path) as connection:
        if not await database.is_older(connection):
            return False
        version = await database.schema_version(connection)
        await database.require_undamaged(connection, path)
        copy = copies.before_upgrade(path, version)
        copy.unlink(missing_ok=True)  # of a try that did not come to its end
        await copies.copy_database(connection, copy)
        async with database.transaction(connection):
            for step in range(version, SCHEMA_VERSION):
                for statement in STEPS[step]:
                    await connection.execute(statement)
            await connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return True
