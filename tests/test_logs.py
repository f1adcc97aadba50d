"""The log holds names of things and never what was in them, however it is reached."""

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import logs
from gateway.logs import Event

ROOT = Path(__file__).parent.parent
CANARY = "canary-in-a-log-51e0"

WAYS = {
    "a library's message": "logging.getLogger('aiohttp.server').error('request %s', CANARY)",
    "our own logger with another text": "logging.getLogger('opusmax').error(CANARY)",
    "an exception's text": "\ntry: raise ValueError(CANARY)\nexcept ValueError: logging.exception(CANARY)",
    "a warning": "warnings.warn(CANARY)",
    "an uncaught exception": "raise KeyError(CANARY)",
    "an exception in a thread": "t = threading.Thread(target=int, args=(CANARY,)); t.start(); t.join()",
    "an exception in a destructor": "type('T', (), {'__del__': lambda self: int(CANARY)})()",
    "a task that nobody awaits": "asyncio.run(forget())",
    "a callback that fails": "asyncio.run(call_back())",
    "a handler that was there before": "logging.getLogger('early').error(CANARY)",
    "a message that cannot be formatted": "logging.getLogger('x').error('%d', CANARY)",
}

PROGRAM = """
import asyncio, gc, logging, sys, threading, warnings
from gateway import logs

CANARY = {canary!r}

async def fail():
    raise RuntimeError(CANARY)

async def forget():
    logs.install_on_loop(asyncio.get_running_loop())
    asyncio.get_running_loop().create_task(fail())
    await asyncio.sleep(0.01)
    gc.collect()

async def call_back():
    logs.install_on_loop(asyncio.get_running_loop())
    asyncio.get_running_loop().call_soon(int, CANARY)
    await asyncio.sleep(0.01)

logging.getLogger("early").addHandler(logging.StreamHandler())
logs.install()
{way}
"""


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("debug", ["", "1"])
def test_no_way_into_the_log_carries_content(way: str, debug: str) -> None:
    program = PROGRAM.format(canary=CANARY, way=way)
    environment = {"PYTHONASYNCIODEBUG": debug, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert CANARY not in child.stdout + child.stderr
    assert "Traceback" not in child.stderr


def test_a_connection_left_open_at_the_end_of_the_process_names_no_address() -> None:
    way = "\nimport builtins, socket\nbuiltins.left = s = socket.create_server(('127.0.0.1', 0))"
    program = PROGRAM.format(canary=CANARY, way=way)
    environment = {"PYTHONWARNINGS": "default", "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert child.stderr == ""


def test_an_event_is_written_with_the_class_and_place_of_its_error() -> None:
    way = (
        "\ntry: logs._place(1)\n"
        "except Exception as e: logging.getLogger('opusmax').error(logs.Event.HANDLER_FAILED, exc_info=e)"
    )
    program = PROGRAM.format(canary=CANARY, way=way)
    child = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    stamp, level, logger, event, error, place = child.stderr.split()
    assert stamp.endswith("Z")
    assert (level, logger, event, error) == ("ERROR", "opusmax", "handler.failed", "AttributeError")
    assert place.startswith("gateway/logs.py:")


def test_a_fault_that_repeats_writes_some_lines_a_second_only() -> None:
    way = "\nfor _ in range(5_000): logging.getLogger('opusmax').error(logs.Event.HANDLER_FAILED)"
    program = PROGRAM.format(canary=CANARY, way=way)
    child = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert 10 <= child.stderr.count("\n") <= 40


def test_an_event_names_the_upstream_its_credential_and_the_request_that_met_it() -> None:
    way = (
        "\nfrom gateway import request_ids\nlog = logging.getLogger('opusmax.upstream')\nrequest_ids.begin()"
        "\ntold = {'upstream': 'claude-2', 'credential': (2, 3)}"
        "\nlog.error(logs.Event.UPSTREAM_BROKE, extra=told, exc_info=TimeoutError(CANARY))"
        "\nprint(request_ids.current())\nrequest_ids.end()\nlog.error(logs.Event.UPSTREAM_BROKE, extra=told)"
        "\nprint(request_ids.current(), logs.told[logs.Event.UPSTREAM_BROKE, 'claude-2'])"
    )
    output, errors = outcome(way)
    identity, nobody, count = output.split()
    first, second = errors.splitlines()
    assert identity.startswith("req_")
    assert first.endswith(f" upstream.broke upstream=claude-2 credential=2/3 request={identity} TimeoutError")
    assert second.endswith(" upstream.broke upstream=claude-2 credential=2/3")
    assert (nobody, count) == ("None", "2")


def test_what_has_not_the_form_of_a_name_is_left_out() -> None:
    way = (
        "\nfor name in (CANARY + ' ', 'A B', 7, None, 'a' * 33, CANARY.upper(), 'a\\nb'):"
        "\n    told = {'upstream': name, 'credential': (name, 7), 'key': CANARY, 'request': CANARY}"
        "\n    logging.getLogger('opusmax').error(logs.Event.UPSTREAM_BROKE, extra=told)"
    )
    _, errors = outcome(way)
    assert errors.count(" upstream.broke\n") == 6
    assert errors.count(" upstream.broke credential=7/7\n") == 1
    assert errors.count("\n") == 7


def outcome(way: str) -> tuple[str, str]:
    """What a program that logs in this `way` writes: to stdout, to stderr."""
    program = PROGRAM.format(canary=CANARY, way=way)
    child = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    return child.stdout, child.stderr


class NobodyReads(io.StringIO):
    def write(self, _text: str) -> int:
        raise BrokenPipeError


def test_a_line_that_cannot_be_written_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    record = logging.LogRecord("opusmax", logging.WARNING, "", 0, Event.LEDGER_FAILING, None, None)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", NobodyReads())
        logs._NamesOnly().emit(record)
