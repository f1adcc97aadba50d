"""Whatever a client or a provider says: none of it is found again on the disk or in the log, nor who said it."""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import aiohttp

from gateway.core.keys import mint
from gateway.core.wire import Endpoint
from gateway.simulator import MODELS, OPENAI_MODELS, Simulator
from tests.canaries import (
    STREAMS,
    WITHHELD,
    Canaries,
    Search,
    answers,
    bad_bodies,
    base64_spellings,
    full_body,
    full_headers,
    malformed,
    slow_answer,
    spellings,
)
from tests.gate_corpus import METERED
from tests.harness import ALL_CREDENTIALS, OPERATOR_CREDENTIAL, Database, now_ms
from tests.test_server_process import COMMAND_LINE, Server, run

HOUR_MS = 3_600_000
MOST_BYTES = 100_000
"""Of a request's body."""
AT_ONCE_SECONDS = 0.5
PATIENCE = aiohttp.ClientTimeout(total=30)
"""Longer than any answer takes: one that never ends is a fault."""
STATIC = ("/static/style.css", "/static/icon.svg")
PAGES = ("/", "/usage", "/privacy", "/usage.json", "/usage.csv", *STATIC, "/healthz", "/readyz")
TEMPORARY_FOLDERS = {tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"}  # noqa: S108 - looked at, not used
WITH_CORES = ("/bin/sh", "-c", 'ulimit -c "$(ulimit -H -c)"; exec "$@"', "sh")
"""Whoever starts the server would like a core file of it."""


class Folder:
    """All that a server has: a folder to work in, with its database and its temporary files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self.database = Database(path / "opusmax.db")
        self.backup = path / "backup.db"

    @property
    def environment(self) -> dict[str, str]:
        return {"TMPDIR": str(self.temporary), "PYTHONDONTWRITEBYTECODE": "1"}

    async def command(self, *arguments: str) -> str:
        """What a command of the administrator prints, whatever becomes of it."""
        _, output, errors = await run(*arguments, database=self.database.path, **self.environment)
        return output + errors


@asynccontextmanager
async def launched(
    folder: Folder, provider: str, *, under: Sequence[str] = (), **environment: str
) -> AsyncIterator[Server]:
    """A server that works in `folder` and writes its stdout there, started by way of the command `under`."""
    with (folder.path / "stdout").open("ab") as stdout:
        process = await asyncio.create_subprocess_exec(
            *(*under, sys.executable, str(COMMAND_LINE)),
            *("serve", "--listen", "127.0.0.1:0", "--anthropic-url", provider, "--openai-url", provider),
            env={
                "OPUSMAX_DATABASE": str(folder.database.path),
                "OPUSMAX_MAX_BODY_BYTES": str(MOST_BYTES),
                **ALL_CREDENTIALS,
                "PATH": os.environ["PATH"],
            }
            | folder.environment
            | environment,
            cwd=folder.path,
            stdout=stdout,
            stderr=asyncio.subprocess.PIPE,
        )
    running = Server(process, "")
    try:
        assert process.stderr is not None
        while b"serving on " not in running.errors:
            line = await process.stderr.readline()
            assert line, f"the server did not start: {running.errors!r}"
            running.errors += line
        running.origin = running.errors.partition(b"serving on ")[2].decode().strip()
        yield running
    finally:
        await running.stop(signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Told:
    """What a client was told. A status of 0: the connection broke before there was one."""

    status: int
    headers: str
    body: bytes


class Client:
    """Says a word in every place there is, and keeps what it was told."""

    def __init__(self, http: aiohttp.ClientSession, port: int, canaries: Canaries) -> None:
        self.canaries = canaries
        self.told: list[Told] = []
        self._http = http
        self._port = port

    async def ask(self, method: str, path: str, key: str = "", **content: Any) -> Told:
        """`content`: `json` or `data`, and headers besides the usual ones."""
        own = {"x-api-key": key} if key else {}
        content["headers"] = full_headers(self.canaries) | own | content.get("headers", {})
        status, head, body = 0, "", bytearray()
        try:
            async with self._http.request(method, path, allow_redirects=False, **content) as answer:
                status, head = answer.status, str(answer.raw_headers)
                async for chunk in answer.content.iter_any():
                    body += chunk
        except (aiohttp.ClientError, ConnectionError):
            pass
        self.told.append(Told(status, head, bytes(body)))
        return self.told[-1]

    @asynccontextmanager
    async def hearing(self, key: str, path: str = "/v1/messages") -> AsyncIterator[None]:
        """In the middle of an answer; at the end of the block the client leaves."""
        body = full_body(self.canaries, stream=True)
        async with self._http.post(path, json=body, headers={"x-api-key": key}) as answer:
            await answer.content.readany()
            yield
            answer.close()

    async def send_raw(self, request: bytes) -> None:
        """Hear what comes at once; to some of what is no HTTP nothing does."""
        address, arrived = (self.canaries.address, 0), b""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=address)
        writer.write(request)
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(AT_ONCE_SECONDS):
                arrived = await reader.read(MOST_BYTES)
        writer.transport.abort()
        head, _, body = arrived.partition(b"\r\n\r\n")
        self.told.append(Told(int(head[9:12] or 0), head.decode("latin-1"), body))


@asynccontextmanager
async def client(origin: str, canaries: Canaries) -> AsyncIterator[Client]:
    connector = aiohttp.TCPConnector(local_addr=(canaries.address, 0))
    async with aiohttp.ClientSession(origin, connector=connector, timeout=PATIENCE) as http:
        yield Client(http, int(origin.rpartition(":")[2]), canaries)


def talking_provider(canaries: Canaries) -> Simulator:
    """It takes any model's name, and lists one that nobody asks for."""
    listed = canaries("listed model")
    return Simulator(
        credentials={OPERATOR_CREDENTIAL},
        models=(*MODELS, listed),
        openai_models=(*OPENAI_MODELS, listed),
        accept_any_model=True,
    )


async def make_keys(database: Database, name: str) -> dict[str, str]:
    """Keys of which each is refused for another reason, but for the first."""
    limits: dict[str, dict[str, Any]] = {
        "good": {},
        "disabled": {"disabled": True},
        "expired": {"expires": now_ms() - HOUR_MS},
        "too small": {"budgets": [(50, HOUR_MS)]},
        "used up": {"budgets": [(10, HOUR_MS)], "overdraft": 10**6},
        "hurried": {"requests_per_minute": 1},
        "of other models": {"models": ("other-*",)},
    }
    made = {what: (await database.create_key(f"{name} {what}", **limit))[0] for what, limit in limits.items()}
    return made | {"unknown": mint().text, "none": ""}


async def ask_everywhere(client: Client, keys: dict[str, str]) -> None:
    """Every address, with every key, JSON and streams, and with words in the address itself."""
    word = client.canaries("path")
    query = f"?beta={client.canaries('query')}&{client.canaries('name in a query')}={client.canaries('value')}"
    for endpoint, key in product(Endpoint, keys.values()):
        for path in endpoint.paths:
            path = path.format(model_id=word)
            for body in ({}, {"stream": True}, {"model": client.canaries("model")}):
                await client.ask(endpoint.method, path, key, json=full_body(client.canaries, **body))
    for path, key in product(("/v1/models", f"/v1/models/{word}"), keys.values()):
        await client.ask("GET", path, headers={"authorization": f"Bearer {key}"})
    unlisted = (f"/{word}", f"/v1/messages/{word}", f"/v1/models/{word}%2f", f"/v1/responses/{word}")
    for path in (*PAGES, *unlisted, *METERED, "/v1/models"):
        for method, key in product(("GET", "HEAD", "POST", "DELETE"), (keys["good"], keys["unknown"])):
            await client.ask(method, path + query, key, data={"key": word, word: word})
    for key in keys.values():
        await client.ask("POST", "/usage", data={"key": key, word: word})
        await client.ask("GET", f"/usage?ticket={word}&before={word}", key)
        await client.ask("GET", "/usage.json", key)


async def ask_badly(client: Client, key: str) -> None:
    """Bodies that are no request, and requests that are no HTTP."""
    word, path = client.canaries("bad request"), METERED[0]
    json_type = {"content-type": "application/json"}
    for data in bad_bodies(client.canaries):
        for asked in (*METERED, f"{path}/count_tokens"):
            await client.ask("POST", asked, key, data=data, headers=json_type)
    for headers in ({"content-type": f"text/{word}"}, json_type | {"content-encoding": word}):
        await client.ask("POST", path, key, data=word, headers=headers)
    await client.ask("POST", path, key, json=full_body(client.canaries, system=word * (MOST_BYTES // len(word))))
    await client.ask("POST", path, json={}, headers={"x-api-key": key, "authorization": f"Bearer {mint().text}"})
    await client.ask("POST", path, json={}, headers={"authorization": f"Bearer {word}"})
    await asyncio.gather(*map(client.send_raw, malformed(client.canaries, key)))


async def hear_everything(client: Client, provider: Simulator, key: str) -> None:
    """Whatever a provider may answer, to all that it is asked."""
    for script in answers(client.canaries):
        provider.choose = lambda _received, script=script: script
        for endpoint, stream in product(Endpoint, (False, True)):
            body = full_body(client.canaries, stream=stream)
            await client.ask(endpoint.method, endpoint.path.format(model_id=MODELS[0]), key, json=body)
    for path, said in zip(METERED, STREAMS, strict=False):  # embeddings do not stream
        provider.choose = lambda _received, said=said: slow_answer(client.canaries, said)
        async with client.hearing(key, path):
            provider.choose = None


async def converse(client: Client, provider: Simulator, keys: dict[str, str]) -> None:
    await ask_everywhere(client, keys)
    await ask_badly(client, keys["good"])
    await hear_everything(client, provider, keys["good"])


class Watch:
    """Looks for all that was said, and for the names of the keys apart: only their own rows may hold those."""

    def __init__(self, folder: Path) -> None:
        self.canaries = Canaries()
        self.label = Canaries()
        self.key_name = self.label("name of a key")
        self.folder = Folder(folder)
        self._since = time.time()
        self._said = Search(self.canaries.mark, self.canaries.address)
        self._names = Search(self.label.mark)

    def __str__(self) -> str:
        return f"{self._said}, {len(self.canaries.words) + 1} canaries"

    def look(self, what: str, data: bytes) -> None:
        self._said.look(what, data)
        self._names.look(what, data)

    def look_at_process(self, process: int) -> None:
        """What it has open and mapped, its arguments and environment."""
        for entry in Path(f"/proc/{process}/fd").iterdir():
            self.look(f"descriptor {entry.name}", os.fsencode(entry.readlink()))
        for name in ("cmdline", "environ", "maps", "comm"):
            self.look(f"{name} of the server", Path(f"/proc/{process}/{name}").read_bytes())

    async def command(self, *arguments: str) -> None:
        """An administrator's command, which may name keys."""
        self._said.look(" ".join(arguments), (await self.folder.command(*arguments)).encode())

    def check(self) -> None:
        """Once all is over: look at all that is left, and require that nothing was found."""
        for search in (self._said, self._names):
            search.files(self.folder.path)
            for folder in TEMPORARY_FOLDERS:
                search.files(Path(folder), self._since)
        assert self._said.hits == []
        database = (str(self.folder.database.path), str(self.folder.backup))
        assert [hit for hit in self._names.hits if not hit.startswith(database)] == []
        assert names_kept(self.folder.database, self.label.mark) == {("key", "name")}


def names_kept(database: Database, word: str) -> set[tuple[str, str]]:
    """Tables and columns in which a text with the word stands."""
    found = set()
    for (table,) in database.query("SELECT name FROM sqlite_schema WHERE type = 'table'"):
        for (column,) in database.query(f"SELECT name FROM pragma_table_info('{table}')"):
            if database.query(f'SELECT 1 FROM "{table}" WHERE instr(lower({column}), ?)', word):
                found.add((table, column))
    return found


def test_the_search_finds_a_word_however_it_is_written(tmp_path: Path) -> None:
    canaries = Canaries()
    word = canaries("prompt")
    written = [*spellings(word).values(), *base64_spellings(word), word.upper().encode(), word.title().encode()]
    for number, data in enumerate(written):
        for kept_in in ("a file", "a database"):
            folder = tmp_path / f"{kept_in} {number}"
            folder.mkdir()
            if kept_in == "a file":
                (folder / "file").write_bytes(b"x" * number + data)
            else:
                Database(folder / "database").query("CREATE TABLE kept AS SELECT CAST(? AS BLOB) AS said", data)
            search = Search(canaries.mark)
            search.files(folder)
            assert len(search.hits) == 1, data


def test_the_search_finds_a_word_in_names_and_links(tmp_path: Path) -> None:
    canaries = Canaries()
    (tmp_path / canaries("path")).mkdir()
    (tmp_path / "link").symlink_to(canaries("query"))
    search = Search(canaries.mark)
    search.files(tmp_path)
    assert len(search.hits) == 2


async def test_nothing_that_was_said_is_found_again_and_nobody_who_said_it(tmp_path: Path) -> None:
    """One conversation with a server that crashes at its end."""
    watch = Watch(tmp_path / "work")
    keys = await make_keys(watch.folder.database, watch.key_name)
    async with (
        talking_provider(watch.canaries) as provider,
        launched(watch.folder, provider.origin, under=WITH_CORES) as running,
        client(running.origin, watch.canaries) as talking,
    ):
        await converse(talking, provider, keys)
        watch.look_at_process(running.process.pid)
        await asyncio.gather(watch.command("backup", str(watch.folder.backup)), watch.command("usage"))
        async with talking.hearing(keys["good"]):
            assert await running.stop(signal.SIGSEGV) == -signal.SIGSEGV
    watch.look("stderr", running.errors)
    watch.check()
    check_told(talking)
    check_withheld(provider, watch.canaries)


def check_told(client: Client) -> None:
    """The conversation reached whatever answers there are, and no answer set a cookie."""
    statuses = {told.status for told in client.told}
    assert statuses >= {200, 400, 401, 402, 403, 404, 405, 409, 413, 415, 429, 500, 502, 504, 529}
    assert [told for told in client.told if "set-cookie" in told.headers.lower()] == []


def check_withheld(provider: Simulator, canaries: Canaries) -> None:
    """Of those who asked, the provider has seen what the protocol needs."""
    seen = str([(received.path, received.headers) for received in provider.received])
    assert canaries("header anthropic-beta") in seen
    assert [place for place in WITHHELD if canaries(place) in seen] == []
    assert canaries.address not in seen
