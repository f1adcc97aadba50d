"""The proxies and the unit of deploy/ at full size: what they write, delay and mend; what the server may do."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import aiohttp
import pytest

from gateway.core.records import Key
from gateway.simulator import OPENAI_MODELS, Script, Simulator
from prove.conftest import Figure
from prove.test_system_calls import is_within, read_traces, traced, tracing, written_by
from tests.canaries import Search
from tests.deployed_proxies import Proxy, certificate, program, proxy, proxy_before
from tests.harness import Database, ask, serving
from tests.test_canary import Client, Watch, client, converse, launched, make_keys, talking_provider
from tests.test_deploy_proxies import send_raw, speak
from tests.test_deploy_service import directives, needs_systemd

__all__ = ["certificate", "program", "proxy"]

STREAMED = {
    "/v1/messages": ask(stream=True),
    "/v1/chat/completions": ask(stream=True, model=OPENAI_MODELS[0]),
    "/v1/responses": {"model": OPENAI_MODELS[0], "input": "Hello there", "stream": True},
}


class TlsClient(Client):
    """Says what is no HTTP by way of TLS as well."""

    def __init__(self, http: aiohttp.ClientSession, proxy: Proxy, watch: Watch) -> None:
        super().__init__(http, int(proxy.origin.rpartition(":")[2]), watch.canaries)
        self._proxy = proxy

    async def send_raw(self, request: bytes) -> None:
        await send_raw(self._proxy.origin, request, self.canaries.address, self._proxy.tls)


@traced
async def test_a_whole_conversation_leaves_nothing_in_a_proxy(
    program: str, certificate: Path, tmp_path: Path, figure: Figure
) -> None:
    """All that clients and providers may say; every file that the proxy opens for writing is seen."""
    watch = Watch(tmp_path / "work")
    keys = await make_keys(watch.folder.database, watch.key_name)
    traces, canaries = tmp_path / "traces", watch.canaries
    traces.mkdir()
    async with (
        talking_provider(canaries) as provider,
        launched(watch.folder, provider.origin) as running,
        proxy_before(running.origin, program, tmp_path / "proxy", certificate, tracing(traces)) as proxy,
        proxy.client(canaries.address) as http,
    ):
        ready = time.time()
        await converse(TlsClient(http, proxy, watch), provider, keys)
        provider.choose = None
        await speak(proxy, canaries, keys["good"])
    search = Search(canaries.mark, canaries.address, keys["good"])
    search.files(tmp_path / "proxy")
    written = set(written_by(list(read_traces(traces).values())))
    later = [file for file in written if is_within(file, tmp_path) and changed(Path(file), ready)]
    assert search.hits == []
    assert [file for file in written if not is_within(file, tmp_path / "proxy", Path("/dev"))] == []
    figure(
        "P1",
        f"{program}, a whole conversation: {search}; files written elsewhere: 0 of {len(written)};"
        f" files changed after its start: {len(later)}",
    )


def changed(file: Path, since: float) -> bool:
    """A file that is gone was a temporary one."""
    return not file.exists() or (file.is_file() and file.stat().st_mtime > since)


async def gaps(http: aiohttp.ClientSession, key: str, count: int) -> list[float]:
    """Milliseconds between the events of streams as they come."""
    found = []
    for _ in range(count):
        async with http.post("/v1/messages", json=ask(stream=True), headers={"x-api-key": key}) as answer:
            arrived = [time.perf_counter() async for _ in answer.content.iter_any()]
        found += [1_000 * (after - before) for before, after in pairwise(arrived)]
    return found


async def test_events_come_through_a_proxy_as_they_come_without(
    program: str,
    provider: Simulator,
    database: Database,
    alice: tuple[str, Key],
    certificate: Path,
    tmp_path: Path,
    figure: Figure,
) -> None:
    text, _ = alice
    provider.script = Script(events=40, output_tokens=40, pause_seconds=0.02)
    async with (
        serving(provider, database.path, behind_proxy=True) as origin,
        proxy_before(origin, program, tmp_path / "proxy", certificate) as proxy,
        aiohttp.ClientSession(origin) as direct,
        proxy.client() as http,
    ):
        without, through = await gaps(direct, text, 10), await gaps(http, text, 10)
    assert len(through) >= 0.95 * len(without)
    ratio = median(through) / median(without)
    assert ratio < 1.5
    figure(
        "P6",
        f"{program}: gap between events, median {median(through):.1f} ms, without it {median(without):.1f} ms"
        f" (ratio {ratio:.3f}); longest {max(through):.0f} ms and {max(without):.0f} ms; events that came together:"
        f" {len(without) - len(through):+d} of {len(without)}",
    )


@pytest.mark.parametrize("protocol", ["--http1.1", "--http2"])
async def test_an_answer_cut_anywhere_is_cut_for_the_client(
    proxy: Proxy, program: str, provider: Simulator, alice: tuple[str, Key], protocol: str, figure: Figure
) -> None:
    text, _ = alice
    told_whole, tried = 0, 0
    for path, body in STREAMED.items():
        for cut in ("close", "reset"):
            for events in range(1, 7):
                provider.script = Script(events=8, cut_after_events=events, cut=cut)
                tried += 1
                told_whole += await curl(proxy, protocol, text, path, json.dumps(body)) == 0
    figure("P6", f"{program} {protocol[2:]}: broken answers that look whole: {told_whole} of {tried}")
    assert told_whole == 0
    provider.script = Script()
    for path, body in STREAMED.items():
        assert await curl(proxy, protocol, text, path, json.dumps(body)) == 0


async def curl(proxy: Proxy, protocol: str, key: str, path: str, body: str) -> int | None:
    command = ["curl", "-sNo", "/dev/null", protocol, "--cacert", str(proxy.certificate), "-H", f"x-api-key: {key}"]
    command += ["-H", "content-type: application/json", "-d", body, f"{proxy.origin}{path}"]
    return await (await asyncio.create_subprocess_exec(*command)).wait()


# What the unit lets the server do.

GROUP = re.compile(r"^(@[\w-]+)\n((?:[ \t].*\n|#.*\n)*)", re.MULTILINE)
BY_ROOT_ALONE = {"fchown"}
"""SQLite gives its files to the owner of the database only where it may, as root; the service is not root."""
ENDS_AT_ONCE = {"exit", "exit_group", "execve", "rt_sigreturn", "restart_syscall"}
FORBID_CODE = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""
"""`PR_SET_MDWE`: the kernel's own form of MemoryDenyWriteExecute, for this process and what it becomes."""


def allowed_calls() -> set[str]:
    """What SystemCallFilter leaves, read as systemd does: each line adds, or with `~` takes away."""
    command = ["systemd-analyze", "syscall-filter", "--no-pager"]
    groups = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    members = {name: re.findall(r"^[ \t]+([@\w-]+)$", lines, re.MULTILINE) for name, lines in GROUP.findall(groups)}

    def expand(name: str) -> set[str]:
        return set().union(*map(expand, members[name])) if name in members else {name}

    allowed: set[str] = ENDS_AT_ONCE | expand("@default")
    for line in directives()["SystemCallFilter"]:
        named = set().union(*map(expand, line.removeprefix("~").split()))
        allowed = allowed - named if line.startswith("~") else allowed | named
    return allowed


@pytest.fixture
async def conversation_calls(tmp_path: Path) -> set[str]:
    """Every system call that a server makes, from its start over a whole conversation to its end."""
    watch = Watch(tmp_path / "work")
    keys = await make_keys(watch.folder.database, watch.key_name)
    summary = tmp_path / "calls"
    strace = (str(shutil.which("strace")), "-D", "-f", "-c", "-qq", "-o", str(summary))
    python = str(shutil.which("python3"))
    async with (
        talking_provider(watch.canaries) as provider,
        launched(watch.folder, provider.origin, under=(*strace, python, "-c", FORBID_CODE)) as running,
        client(running.origin, watch.canaries) as talking,
    ):
        await converse(talking, provider, keys)
        await watch.folder.command("key", "delete", f"{watch.key_name} good", "--yes")
        assert await running.stop() == 0
    async with asyncio.timeout(10):
        while "total" not in (text := await asyncio.to_thread(summary.read_text)):
            await asyncio.sleep(0.1)
    return set(re.findall(r"^ *[\d.]+ .* (\w+)$", text, re.MULTILINE)) - {"total"}


@traced
@needs_systemd
async def test_the_server_makes_no_call_that_the_unit_forbids(conversation_calls: set[str], figure: Figure) -> None:
    """And runs where no memory may be written and executed."""
    assert len(conversation_calls) > 40
    forbidden = sorted(conversation_calls - allowed_calls() - (BY_ROOT_ALONE if os.getuid() == 0 else set()))
    assert forbidden == []
    figure(
        "P1", f"system calls of a server that the unit forbids: 0 of {len(conversation_calls)} kinds; W^X in force"
    )
