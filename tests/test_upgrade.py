"""A database of an older version is brought to the current schema at a server's start, and nothing is lost."""

import sqlite3
from contextlib import closing
from pathlib import Path

import aiohttp
import pytest

from gateway import copies, database, erasure, keystore, upgrade
from gateway.database import SCHEMA_FILE, SCHEMA_VERSION, DatabaseError
from gateway.simulator import Simulator
from tests.harness import ask, now_ms, serving

SCHEMAS = Path(__file__).parent / "schemas"
"""The schemas of older versions, as they were."""
OLD_VERSIONS = [int(file.stem) for file in sorted(SCHEMAS.glob("*.sql"))]
ROWS = """
INSERT INTO key (id, name, created, total_requests, total_charge) VALUES (7, 'alice', 5, 1, 30);
INSERT INTO budget (key, window, tokens) VALUES (7, NULL, 1000);
INSERT INTO request (key, started, sequence, model, status, input, output, cache_write, cache_read, estimated)
VALUES (7, 6, 0, 'claude-x', 200, 10, 20, 0, 0, 0);
"""


def make(path: Path, schema: str, rows: str = "") -> None:
    path.touch(0o600)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"PRAGMA journal_mode = wal; {schema}; {rows}")


def columns(path: Path) -> list[tuple[object, ...]]:
    """Each column, index and trigger, with everything that SQLite knows of it but the words of its definition."""
    with closing(sqlite3.connect(path)) as connection:
        described = connection.execute(
            'SELECT t.name, c.cid, c.name, c.type, c."notnull", c.dflt_value, c.pk FROM pragma_table_list t'
            " JOIN pragma_table_xinfo(t.name) c WHERE t.schema = 'main' AND t.name != 'sqlite_schema'"
        ).fetchall()
        others = connection.execute("SELECT type, name, sql FROM sqlite_schema WHERE type != 'table'").fetchall()
    return sorted(described, key=str) + sorted(others, key=str)


def files_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_there_is_a_schema_and_a_step_for_each_older_version() -> None:
    assert sorted(upgrade.STEPS) == OLD_VERSIONS == list(range(1, SCHEMA_VERSION))


@pytest.mark.parametrize("version", OLD_VERSIONS)
async def test_an_upgraded_database_equals_a_fresh_one_and_keeps_its_rows(version: int, tmp_path: Path) -> None:
    old, fresh = tmp_path / "old.db", tmp_path / "fresh.db"
    make(old, (SCHEMAS / f"{version}.sql").read_text(), ROWS)
    make(fresh, SCHEMA_FILE.read_text())
    assert columns(old) != columns(fresh)
    assert await upgrade.upgrade(old)
    assert columns(old) == columns(fresh)
    assert not await upgrade.upgrade(old)
    with closing(sqlite3.connect(old)) as connection:
        assert connection.execute("SELECT name, total_charge FROM key").fetchall() == [("alice", 30)]
        assert connection.execute("SELECT input, output, upstream FROM request").fetchall() == [(10, 20, None)]


async def test_the_file_as_it_was_stays_beside_it_and_is_its_owners_only(tmp_path: Path) -> None:
    path = tmp_path / "opusmax.db"
    make(path, (SCHEMAS / "1.sql").read_text(), ROWS)
    before = columns(path)
    copies.before_upgrade(path, 1).write_bytes(b"left by a try that did not come to its end")
    await upgrade.upgrade(path)
    copy = tmp_path / "opusmax.db-schema-1"
    assert columns(copy) == before
    assert copy.stat().st_mode & 0o777 == 0o600
    copies.remove_those_of_upgrades(path)
    assert not copy.exists()


async def test_a_step_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "opusmax.db"
    make(path, (SCHEMAS / "1.sql").read_text(), f"{ROWS} ALTER TABLE request ADD COLUMN upstream TEXT;")
    before = columns(path)
    with pytest.raises(DatabaseError, match="duplicate column"):
        await upgrade.upgrade(path)
    assert columns(path) == before


async def test_deleting_a_key_removes_the_copy_that_still_has_it(tmp_path: Path) -> None:
    path = tmp_path / "opusmax.db"
    make(path, (SCHEMAS / "1.sql").read_text(), ROWS)
    await upgrade.upgrade(path)
    async with database.connect(path) as connection:
        (key,) = (await keystore.read_directory(connection)).keys.values()
        await erasure.erase_key(connection, path, key, now_ms())
    assert not copies.before_upgrade(path, 1).exists()


@pytest.mark.parametrize("version", [0, 1])
async def test_a_file_of_another_program_is_left_as_it_is(tmp_path: Path, version: int) -> None:
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"CREATE TABLE theirs (x); PRAGMA user_version = {version};")
    before = path.read_bytes()
    assert not await upgrade.upgrade(path)
    assert path.read_bytes() == before
    assert files_in(tmp_path) == ["theirs.db"]


async def test_what_stands_beside_a_database_stands_beside_it_and_not_beside_a_link_to_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    path, link = tmp_path / "real" / "opusmax.db", tmp_path / "link.db"
    make(path, (SCHEMAS / "1.sql").read_text(), ROWS)
    link.symlink_to(path)
    await upgrade.upgrade(link)
    assert copies.before_upgrade(path, 1).exists()
    lock = database.FileLock(path, "server")
    assert lock.acquire()
    assert not database.FileLock(link, "server").acquire()
    lock.release()
    async with database.connect(link) as connection:
        (key,) = (await keystore.read_directory(connection)).keys.values()
        report = await erasure.erase_key(connection, link, key, now_ms())
    assert not copies.before_upgrade(path, 1).exists()
    assert {file.name for file in report.files} >= {"opusmax.db", "opusmax.db-wal"}
    assert files_in(tmp_path) == ["link.db", "real"]


async def test_commands_leave_the_upgrade_to_the_server(tmp_path: Path) -> None:
    path = tmp_path / "opusmax.db"
    make(path, (SCHEMAS / "1.sql").read_text(), ROWS)
    with pytest.raises(DatabaseError, match=r"older OpusMax .* start the server"):
        async with database.connect(path):
            pass
    assert not copies.before_upgrade(path, 1).exists()


async def test_a_server_upgrades_at_its_start_and_serves(provider: Simulator, tmp_path: Path) -> None:
    path = tmp_path / "opusmax.db"
    make(path, (SCHEMAS / "1.sql").read_text(), ROWS)
    async with serving(provider, path) as origin, aiohttp.ClientSession(origin) as http:
        async with http.post("/v1/messages", json=ask()) as response:
            assert response.status == 401  # nobody has a key, and the ledger is ready
        async with http.get("/readyz") as response:
            assert response.status == 200
