"""`demo`: the main job on one screen, with nothing set up.

A simulated provider, the gateway on a fresh database, a key made by the command line, one streamed answer shown as
it arrives; then what to open and what to paste. It serves until Ctrl-C and leaves nothing behind.
"""

import asyncio
import json
import secrets
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import aiohttp

from gateway import logs, process, server
from gateway.admin_texts import paste_lines
from gateway.core.settings import Settings
from gateway.credentials import open_upstreams
from gateway.simulator import MODELS, Script, Simulator

PORT = 8080
KEY_NAME = "demo"
KEY_FLAGS = ("--budget", "2M/5h", "--budget", "20M/7d", "--requests-per-minute", "60")
ANSWER = Script(output_tokens=160, events=60, pause_seconds=0.03)
_COMMAND_LINE = Path(__file__).parent.parent / "opusmax.py"


def demo() -> int:
    """Run until Ctrl-C. Returns the exit code."""
    process.harden()
    logs.install()
    with tempfile.TemporaryDirectory(prefix="opusmax-demo-") as folder:
        return asyncio.run(_demo(Path(folder) / "opusmax.db"))


async def _demo(database: Path) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    credential = f"simulated-{secrets.token_hex(8)}"
    async with Simulator(credentials={credential}) as provider:
        provider.script = ANSWER
        _say(f"1. A simulated provider stands in for api.anthropic.com, at {provider.origin}.")
        key = await _create_key(database)
        settings = Settings.load(
            {"database": str(database), "anthropic_url": provider.origin, "listen": f"127.0.0.1:{_free_port()}"}, {}
        )
        accesses = open_upstreams(settings, {"ANTHROPIC_API_KEY": credential})
        async with server.listening(settings, accesses) as origin:
            _say(f"3. The gateway serves at {origin}. One streamed answer through it, as it arrives:\n")
            await _show_answer(origin, key)
            _say(f"\n4. Open {origin}/usage and type the key: the request above is on it.")
            _say(f"   {key}\n\n5. Or paste:\n")
            _say("\n".join(paste_lines(origin, key)) + "\n\nCtrl-C ends it.")
            await stop.wait()
    return 0


async def _create_key(database: Path) -> str:
    """By the command line itself, as an administrator would."""
    command = ("key", "create", KEY_NAME, *KEY_FLAGS, "--json", "--database", str(database))
    _say(f"2. A key, made by: opusmax.py {' '.join(command[:-3])}")
    child = await asyncio.create_subprocess_exec(
        sys.executable, _COMMAND_LINE, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    output, _ = await child.communicate()
    return str(json.loads(output)["key"])


async def _show_answer(origin: str, key: str) -> None:
    request = {
        "model": MODELS[0],
        "max_tokens": 1_000,
        "stream": True,
        "messages": [{"role": "user", "content": "What do you keep of this?"}],
    }
    headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{origin}/v1/messages", json=request, headers=headers) as answer,
    ):
        async for line in answer.content:
            if line.startswith(b"data:"):
                delta = json.loads(line[5:]).get("delta", {})
                sys.stdout.write(delta.get("text", ""))
                sys.stdout.flush()
    sys.stdout.write("\n")


def _free_port() -> int:
    """The usual port, or another one if it is taken."""
    for port in (PORT, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise OSError("no port is free")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
