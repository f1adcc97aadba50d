"""Clients that mean harm, in a process of their own: `python -m prove.attackers KIND PORT`, a key in `ATTACK_KEY`.

Each kind opens its connections, does its worst for a bounded time, and prints one JSON object: how many connections
there were, and what was answered.
"""

import asyncio
import gzip
import json
import os
import random
import resource
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from gateway.core import keys
from gateway.core.keys import ApiKey

SECONDS = 30
"""How long the kinds last that are not over by themselves."""
PATIENCE_SECONDS = 90
"""When a connection that the server has not closed counts as left open."""
WRONG_KEYS_PER_SECOND = 200
SLOW_SENDERS = 2_000
SLOW_READERS = 500
SMALL_BUFFER_BYTES = 4_096
"""What a slow reader lets its system receive for it."""
UPLOADS = 100
UPLOAD_BYTES = 32 * 2**20
PACKED = 200
LARGE_HEADS = 200
OTHERS_PER_SECOND = 20
LARGE_HEAD_BYTES = 800_000
HOLDERS = 1_000
"""Connections that are only held open, where the server is told to take half as many."""

_ESTABLISHED = 1
"""The state of a connection that neither side has closed, in Linux's `tcp_info`."""

MESSAGES = "POST /v1/messages HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\nx-api-key: {key}\r\n"


@dataclass(slots=True)
class Result:
    """What became of an attack."""

    connections: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    """Status -> how many. "none": closed without a word. "cut": reset. "open": no sign of an end; a system that
    gives up on a connection need not send any."""


class Attack:
    """The attacks, all of one key holder on one server."""

    def __init__(self, port: int, key: str) -> None:
        self.result = Result()
        self._port = port
        self._key = key
        self._messages = MESSAGES.format(key=key).encode()

    async def wrong_keys(self) -> None:
        """Half of them well-formed, with the key id of a real key: those must be hashed to be refused."""

        def head(number: int) -> bytes:
            key = wrong_key(self._key) if number % 2 else f"sk-junk-{number}"
            return MESSAGES.format(key=key).encode() + b"connection: close\r\ncontent-length: 2\r\n\r\n{}"

        await self._one_by_one(map(head, range(SECONDS * WRONG_KEYS_PER_SECOND)), WRONG_KEYS_PER_SECOND)

    async def slow_senders(self) -> None:
        """A byte a second: of nothing at all, of a head, of a body."""
        starts = [b"", b"GET /v1/models HTTP/1.1\r\nx: ", self._messages + b"content-length: 9000\r\n\r\n{"]
        await asyncio.gather(*(self._drip(starts[number % len(starts)]) for number in range(SLOW_SENDERS)))

    async def slow_readers(self) -> None:
        """They ask for long streams and read nothing."""
        body = b'{"model": "claude-sonnet-5-5", "max_tokens": 400000, "stream": true, "messages": []}'
        ask = self._messages + b"content-length: %d\r\n\r\n" % len(body) + body
        await asyncio.gather(*(self._ask_and_wait(ask) for _ in range(SLOW_READERS)))

    async def uploads(self) -> None:
        """As large as they may be, all at once."""
        start, end = b'{"model": "claude-sonnet-5-5", "max_tokens": 9, "messages": "', b'"}'
        body = start + b"x" * (UPLOAD_BYTES - len(start) - len(end)) + end
        head = self._messages + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        await asyncio.gather(*(self._say(head, body) for _ in range(UPLOADS)))

    async def packed_bodies(self) -> None:
        """Bombs: a small body that unpacks to a large one."""
        bomb = gzip.compress(b"x" * 50_000_000)
        head = self._messages + b"connection: close\r\ncontent-encoding: gzip\r\n"
        head += b"content-length: %d\r\n\r\n" % len(bomb)
        await self._one_by_one([head + bomb] * PACKED, OTHERS_PER_SECOND)

    async def large_heads(self) -> None:
        """A hundred lines of 8,000 bytes."""
        line = b"x-filler: " + b"x" * 7_988 + b"\r\n"
        head = b"GET /healthz HTTP/1.1\r\nhost: here\r\n" + line * (LARGE_HEAD_BYTES // len(line)) + b"\r\n"
        await self._one_by_one([head] * LARGE_HEADS, OTHERS_PER_SECOND)

    async def holders(self) -> None:
        """They open connections, and open them again about a second after they were closed."""
        async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
            for _ in range(HOLDERS):
                group.create_task(self._hold_again())

    async def _one_by_one(self, requests: Iterable[bytes], per_second: int) -> None:
        calls = []
        for request in requests:
            calls.append(asyncio.create_task(self._say(request)))
            await asyncio.sleep(1 / per_second)
        await asyncio.gather(*calls)

    async def _hold_again(self) -> None:
        while True:
            with suppress(OSError):
                reader, writer = await self._open()
                await reader.read(1)
                writer.transport.abort()
            await asyncio.sleep(random.uniform(0.5, 1.5))

    async def _say(self, *parts: bytes) -> None:
        """Send all of it, whatever is answered meanwhile."""
        reader, writer = await self._open()
        answer = asyncio.create_task(self._note(reader, writer))
        with suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
        await answer

    async def _drip(self, start: bytes) -> None:
        reader, writer = await self._open()
        writer.write(start)
        answer = asyncio.create_task(self._note(reader, writer))
        while not answer.done():
            await asyncio.sleep(1)
            if start and not writer.is_closing():
                writer.write(b"x")

    async def _ask_and_wait(self, ask: bytes) -> None:
        started = time.monotonic()
        with socket.socket() as own:
            own.setblocking(False)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(own, ("127.0.0.1", self._port))
            await loop.sock_sendall(own, ask)
            self.result.connections += 1
            while not is_closed(own) and time.monotonic() - started < PATIENCE_SECONDS:
                await asyncio.sleep(0.5)
            self._count("cut" if is_closed(own) else "open")

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.result.connections += 1
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def _note(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = b""
        outcome = "none"
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while piece := await reader.read(2**16):
                    answer += piece
        except TimeoutError:
            outcome = "open"
        except ConnectionError:
            pass
        writer.transport.abort()
        self._count(answer[9:12].decode() or outcome)

    def _count(self, outcome: str) -> None:
        self.result.answers[outcome] = self.result.answers.get(outcome, 0) + 1


def wrong_key(key: str) -> str:
    """Another secret under the same key id, with a checksum that is right."""
    right = keys.parse(key)
    assert right is not None
    return ApiKey(right.key_id, keys.mint().secret).text


def is_closed(own: socket.socket) -> bool:
    """Whether the other side is gone, told without reading what it has sent."""
    info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return info[0] != _ESTABLISHED


async def attack(kind: str, port: int, key: str) -> Result:
    attacker = Attack(port, key)
    act: Callable[[], Awaitable[None]] = getattr(attacker, kind)
    with suppress(TimeoutError):
        await act()
    return attacker.result


if __name__ == "__main__":
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    outcome = asyncio.run(attack(sys.argv[1], int(sys.argv[2]), os.environ["ATTACK_KEY"]))
    sys.stdout.write(json.dumps(asdict(outcome)))
