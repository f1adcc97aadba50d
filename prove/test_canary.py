"""P1 and P2: nothing of what was said is kept, nor who said it, whatever fails, breaks or is killed meanwhile."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import product
from pathlib import Path
from sqlite3 import connect as connect_directly

import pytest

from gateway.core.wire import Endpoint
from prove.conftest import Figure
from prove.test_disk_faults import fill_up, small_disk
from tests.canaries import Canaries, full_body, slow_answer
from tests.harness import Database
from tests.raw_provider import OK, RawProvider, Reader, Writer, read_request
from tests.test_canary import (
    PAGES,
    WITH_CORES,
    Client,
    Watch,
    check_told,
    check_withheld,
    client,
    converse,
    launched,
    make_keys,
    talking_provider,
)

__all__ = ["small_disk"]

DEBUGGING = {"PYTHONASYNCIODEBUG": "1", "PYTHONDEVMODE": "1"}
TABLES = ("request", "usage_by_hour", "budget", "secret", "key")
COMMANDS = (["usage"], ["usage", "--by", "model"], ["check"], ["key", "list"], ["key", "list", "--json"])
LOOK_SECONDS = 0.5
"""The server looks at the database four times a second."""


@pytest.mark.parametrize("debugging", [False, True], ids=["as usual", "debugging"])
async def test_a_conversation_leaves_no_word_behind(tmp_path: Path, figure: Figure, debugging: bool) -> None:
    """All that clients and providers may say, until the server crashes in the middle of an answer."""
    watch = Watch(tmp_path / "work")
    keys = await make_keys(watch.folder.database, watch.key_name)
    async with (
        talking_provider(watch.canaries) as provider,
        launched(watch.folder, provider.origin, under=WITH_CORES, **DEBUGGING if debugging else {}) as running,
        client(running.origin, watch.canaries) as talking,
    ):
        await converse(talking, provider, keys)
        watch.look_at_process(running.process.pid)
        for command in COMMANDS:
            await watch.command(*command)
        await asyncio.gather(converse(talking, provider, keys), watch.command("backup", str(watch.folder.backup)))
        provider.choose = lambda _received: slow_answer(watch.canaries)
        async with talking.hearing(keys["good"]):
            assert await running.stop(signal.SIGSEGV) == -signal.SIGSEGV
    watch.look("stderr", running.errors)
    watch.check()
    check_told(talking)
    check_withheld(provider, watch.canaries)
    statuses = len({told.status for told in talking.told if told.status})
    mode = "asyncio's and Python's debug mode" if debugging else "as usual"
    figure("P1", f"{mode}, SIGSEGV in an answer: {watch} ({len(talking.told):,} requests, {statuses} statuses)")
    figure("P2", f"{mode}: cookies set: 0 on {len(talking.told):,} answers; of the client's address: 0 hits")


@contextmanager
def hidden(database: Database, table: str) -> Iterator[None]:
    """Another process has given a table another name: whoever uses it fails, and is told so with a text."""
    with closing(connect_directly(database.path, timeout=10)) as connection:
        connection.execute("PRAGMA legacy_alter_table = ON")
        connection.execute(f'ALTER TABLE "{table}" RENAME TO hidden')
        try:
            yield
        finally:
            connection.execute(f'ALTER TABLE hidden RENAME TO "{table}"')


async def ask_a_little(talking: Client, key: str) -> None:
    for endpoint, stream in product(Endpoint, (False, True)):
        body = full_body(talking.canaries, stream=stream)
        await talking.ask(endpoint.method, endpoint.path.format(model_id=talking.canaries("path")), key, json=body)
    for page in PAGES:
        await talking.ask("GET", page, key)
    await talking.ask("POST", "/usage", data={"key": key, talking.canaries("path"): "1"})


async def test_whatever_fails_in_the_database_is_told_without_a_word(tmp_path: Path, figure: Figure) -> None:
    """Each table missing for a while, and a secret whose hash is none; then the server is killed in an answer."""
    watch = Watch(tmp_path / "work")
    keys = await make_keys(watch.folder.database, watch.key_name)
    async with (
        talking_provider(watch.canaries) as provider,
        launched(watch.folder, provider.origin, **DEBUGGING) as running,
        client(running.origin, watch.canaries) as talking,
    ):
        for table in TABLES:
            with hidden(watch.folder.database, table):
                await asyncio.sleep(LOOK_SECONDS)
                for key in keys.values():
                    await ask_a_little(talking, key)
                await watch.command("usage")
        with closing(connect_directly(watch.folder.database.path, isolation_level=None)) as connection:
            connection.execute("UPDATE secret SET hash = 'none'")
        await asyncio.sleep(LOOK_SECONDS)
        for key in keys.values():
            await ask_a_little(talking, key)
        await running.stop(signal.SIGKILL)
    watch.look("stderr", running.errors)
    failures = running.errors.count(b"ERROR")
    assert failures > len(TABLES)
    watch.check()
    broken = sum(told.status >= 500 for told in talking.told)
    figure("P1", f"each table missing for a while: {watch} ({failures} failures logged, {broken} answers 5xx)")


def nonsense(canaries: Canaries) -> list[bytes]:
    """Answers that are no HTTP, or not quite, each with a word in what is wrong."""
    word = canaries("nonsense").encode()
    chunked = OK + b"transfer-encoding: chunked\r\n\r\n"
    heads = [
        *(
            b"content-length: %b\r\n" % word,
            b"content-length: -1%b\r\n" % word,
            b"transfer-encoding: %b\r\n" % word,
        ),
        *(b"transfer-encoding: %b\r\n" % word, b"%b\r\n" % word, b"%b : 1\r\n" % word, b"x: 1\r\n %b\r\n" % word),
        *(b"x: %b\r\n" % (word * 4_000), b"x: %b\r\n" % word * 300, b"%b\xff: \xff\r\n" % word),
        *(b"content-length: 5\r\ncontent-length: 6%b\r\n" % word, b"content-encoding: %b\r\n" % word),
        *(b"content-type: %b\r\n" % word, b"content-type: text/event-stream;%b\r\n" % word),
    ]
    return [
        *(word, b"HTTP/1.1 %b\r\n\r\n" % word, b"HTTP/9.9 200 %b\r\n\r\n" % word, b"\x15\x03\x01" + word),
        *(b"HTTP/1.1 %d %b\r\n\r\n%b" % (status, word, word) for status in (101, 103, 199, 204, 304, 600, 999)),
        b"HTTP/1.1 103 %b\r\nlink: %b\r\n\r\n" % (word, word) * 100,
        *(OK + head + b"\r\n" + word for head in heads),
        *(chunked + word, chunked + b"5;%b\r\nhello\r\n0\r\n%b: %b\r\n\r\n" % (word, word, word)),
        *(chunked + b"fff\r\n" + word, OK + b"content-length: 999\r\n\r\n" + word),
        OK + b"content-length: 5\r\n\r\nhello" + word * 3_000,
    ]


async def test_a_provider_that_talks_nonsense_leaves_no_word_behind(tmp_path: Path, figure: Figure) -> None:
    watch = Watch(tmp_path / "work")
    keys = await make_keys(watch.folder.database, watch.key_name)
    bytes_now = b""

    async def answer(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(bytes_now)
        await writer.drain()

    async with (
        RawProvider(answer) as provider,
        launched(watch.folder, provider.origin, **DEBUGGING) as running,
        client(running.origin, watch.canaries) as talking,
    ):
        kinds = nonsense(watch.canaries)
        for bytes_now in kinds:  # noqa: B007 - what the provider answers
            await ask_a_little(talking, keys["good"])
        watch.look_at_process(running.process.pid)
        await running.stop(signal.SIGKILL)
    watch.look("stderr", running.errors)
    watch.check()
    statuses = sorted({told.status for told in talking.told})
    assert 502 in statuses
    figure("P1", f"{len(kinds)} kinds of nonsense from the provider, SIGKILL: {watch} (statuses {statuses})")


async def test_a_full_disk_keeps_no_word(small_disk: Path, figure: Figure) -> None:
    watch = Watch(small_disk / "work")
    keys = await make_keys(watch.folder.database, watch.key_name)
    async with (
        talking_provider(watch.canaries) as provider,
        launched(watch.folder, provider.origin, **DEBUGGING) as running,
        client(running.origin, watch.canaries) as talking,
    ):
        await ask_a_little(talking, keys["good"])
        fill_up(small_disk)
        for key in keys.values():
            await ask_a_little(talking, key)
        for command in (*COMMANDS, ["backup", str(watch.folder.backup)]):
            await watch.command(*command)
        (small_disk / "ballast").unlink()
        assert await running.stop(signal.SIGTERM) == 0
    watch.look("stderr", running.errors)
    watch.check()
    refused = sum(told.status == 503 for told in talking.told)
    assert refused > 0
    figure("P1", f"a full disk: {watch} ({refused} of {len(talking.told)} requests refused)")
