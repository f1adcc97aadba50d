"""What those who watch the server are told: its service manager, by datagrams, and a load balancer, by probes."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from gateway.core.records import Key
from gateway.notify import ServiceManager
from gateway.simulator import Script, Simulator
from tests.harness import Database, ask
from tests.test_server_process import Server, server


class Manager:
    """The socket of a service manager."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(address.replace("@", "\0", 1))

    async def told(self) -> dict[str, str]:
        """The next datagram, by its names."""
        datagram = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.socket, 4_096), 10)
        return dict(line.split("=", 1) for line in datagram.decode().splitlines())


@pytest.fixture(params=["a path", "the abstract space"])
def manager(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Manager]:
    address = f"{tmp_path}/notify" if request.param == "a path" else f"@opusmax-test-{os.getpid()}"
    manager = Manager(address)
    yield manager
    manager.socket.close()


async def test_the_manager_hears_of_the_start_of_reloads_and_of_the_stop(
    provider: Simulator, database: Database, manager: Manager
) -> None:
    async with server(provider, database.path, NOTIFY_SOCKET=manager.address) as running:
        assert await manager.told() == {"READY": "1"}
        async with aiohttp.ClientSession(running.origin) as http, http.get("/readyz") as answer:
            assert answer.status == 200
        before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
        running.process.send_signal(signal.SIGHUP)
        reloading = await manager.told()
        assert reloading.keys() == {"RELOADING", "MONOTONIC_USEC"}
        assert before_us <= int(reloading["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
        assert await manager.told() == {"READY": "1"}
        assert await running.stop() == 0
        assert await manager.told() == {"STOPPING": "1"}
        with pytest.raises(BlockingIOError):
            manager.socket.recv(4_096)


async def test_a_server_gives_signs_of_life_if_it_is_asked_for_them(
    provider: Simulator, database: Database, manager: Manager
) -> None:
    signs = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "100000"}
    async with server(provider, database.path, **signs):
        heard = [await manager.told() for _ in range(6)]
    assert heard.count({"READY": "1"}) == 1
    assert heard.count({"WATCHDOG": "1"}) == 5


def test_a_loop_that_hangs_gives_no_sign_of_life(tmp_path: Path) -> None:
    listener = Manager(f"{tmp_path}/notify")
    manager = ServiceManager({"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "20000"})
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        watching = loop.create_task(manager.watch())
        for _ in range(2):
            runner.run(asyncio.sleep(0.1))
            signs = 0
            while not is_empty(listener):
                signs += 1
            assert signs >= 2
            time.sleep(0.1)  # the loop does not turn
            assert is_empty(listener)
        watching.cancel()
    listener.socket.close()


def is_empty(manager: Manager) -> bool:
    """Whether nothing more was told; takes one datagram if not."""
    try:
        manager.socket.recv(4_096)
    except BlockingIOError:
        return True
    return False


async def test_a_sign_of_life_for_another_process_is_not_given(tmp_path: Path) -> None:
    manager = Manager(f"{tmp_path}/notify")
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
    for pid, is_ours in (("1", False), (str(os.getpid()), True)):
        watching = asyncio.create_task(ServiceManager(environment | {"WATCHDOG_PID": pid}).watch())
        await asyncio.sleep(0.01)
        assert is_empty(manager) is not is_ours
        watching.cancel()
    manager.socket.close()


@pytest.mark.parametrize(
    "address", ["", "nothing", "/no/such/socket", "@no-such-name", "@", "vsock:2:1", "/" * 200]
)
@pytest.mark.parametrize("microseconds", ["", "x", "-1", "0", "1000"])
async def test_a_manager_that_cannot_be_told_hurts_nobody(address: str, microseconds: str) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": microseconds})
    manager.ready()
    manager.reloading()
    manager.stopping()
    watching = asyncio.create_task(manager.watch())
    await asyncio.sleep(0.01)
    assert not watching.done() or watching.exception() is None
    watching.cancel()


async def test_a_manager_whose_queue_is_full_does_not_hold_up_the_server(tmp_path: Path) -> None:
    listener = Manager(f"{tmp_path}/notify")
    manager = ServiceManager({"NOTIFY_SOCKET": listener.address})
    for _ in range(5_000):
        manager.ready()
    assert await listener.told() == {"READY": "1"}
    listener.socket.close()


async def test_while_it_drains_the_server_is_alive_and_not_ready(
    provider: Simulator, database: Database, alice: tuple[str, Key]
) -> None:
    provider.script = Script(output_tokens=40, events=40, pause_seconds=0.05)
    async with (
        server(provider, database.path) as running,
        aiohttp.ClientSession(running.origin, headers={"x-api-key": alice[0]}) as http,
        http.post("/v1/messages", json=ask(stream=True)) as stream,
    ):
        await stream.content.readany()
        assert await probes(running) == (200, 200)
        running.process.send_signal(signal.SIGTERM)
        await running.hear(b"server.draining")
        assert await probes(running) == (200, 503)
        async with http.post("/v1/messages", json=ask()) as refused:
            assert refused.status == 503
        assert b"message_stop" in await stream.read()
        assert await running.stop() == 0
    assert [row.status for row in database.rows(alice[1])] == [200]


async def probes(running: Server) -> tuple[int, ...]:
    """The statuses of /healthz and /readyz on new connections, as a load balancer asks for them."""
    statuses = []
    for path in ("/healthz", "/readyz"):
        async with aiohttp.ClientSession(running.origin) as http, http.get(path) as answer:
            statuses.append(answer.status)
    return tuple(statuses)


async def test_without_a_writable_ledger_the_server_is_alive_and_not_ready(
    provider: Simulator, database: Database, alice: tuple[str, Key]
) -> None:
    async with server(provider, database.path) as running:
        database.query("ALTER TABLE key RENAME TO elsewhere")
        await running.hear(b"ledger.failing")
        assert await probes(running) == (200, 503)
        database.query("ALTER TABLE elsewhere RENAME TO key")
        await running.hear(b"ledger.recovered")
        assert await probes(running) == (200, 200)
    del alice
