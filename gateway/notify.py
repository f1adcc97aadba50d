"""What the service manager is told: that the server listens, loads anew, stops, and that its loop still turns.

The protocol of sd_notify(3): a datagram of lines to the socket that `NOTIFY_SOCKET` names. Without that variable
nothing is sent. A socket that is missing or full is no reason to serve less.
"""

import asyncio
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress

SECOND_US = 1_000_000


class ServiceManager:
    """Whoever started the server and wants to hear of it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Raises nothing, whatever stands in `environment`."""
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._watchdog_seconds = _watchdog_seconds(environment)

    def ready(self) -> None:
        """The server listens, or has loaded anew."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """Until it is `ready` again. The time lets the manager tell this from an older message."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    async def watch(self) -> None:
        """Tell that the loop turns, twice in the time that the manager waits for it; until cancelled."""
        while self._watchdog_seconds:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_seconds / 2)

    def _tell(self, lines: str) -> None:
        if self._address is None:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(lines.encode("ascii"), self._address)


def _address(text: str) -> bytes | None:
    """A path, or a name in the abstract space, which begins with an @."""
    if text.startswith("/"):
        return os.fsencode(text)
    if text.startswith("@"):
        return b"\0" + os.fsencode(text[1:])
    return None


def _watchdog_seconds(environment: Mapping[str, str]) -> float:
    """How long the manager waits for a sign of life; 0: it does not, or waits for another process."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    return int(microseconds) / SECOND_US
