"""A faulty disk stops everybody and loses nothing: no request goes unrecorded, and it heals by itself.

The small version: `make prove` takes away real file systems, and for longer.
"""

import asyncio
import resource
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from gateway.core.usage import Usage
from gateway.simulator import Script, Simulator
from gateway.simulator.sending import Received
from tests.harness import OPERATOR_CREDENTIAL, Database, ask, until
from tests.test_server_process import Server, run, server

PAUSE_SECONDS = 0.02
"""Between two requests of a client: it is a fault that is looked for, not load."""
STREAM_USAGE = Usage(input=4_711, output=815)
STREAMS = 3
BACK_SECONDS = 5.0
"""As promised, with room to spare: the ledger looks four times a second."""

Fault = Callable[[Server], contextmanager]


@dataclass(frozen=True, slots=True)
class Seen:
    """One request of one client."""

    key: str
    began: float
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How a server came through a fault."""

    noticed_seconds: float
    """From the fault to a refusal for every key."""
    back_seconds: float
    """From its end to an answer for every key."""
    answered: int
    refused: int
