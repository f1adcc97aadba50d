"""The model names that the ledger may hold.

A client writes any text it likes into `model`, so a name is kept only if somebody else wrote it before: the
operator in the configuration, or the upstream in its own list of models. Everything else is `unknown`.
"""

import asyncio
import itertools
import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

from gateway.core.errors import GatewayError
from gateway.core.records import UNKNOWN_MODEL

REFRESH_SECONDS = 3_600
MIN_REFRESH_SECONDS = 60
"""Unknown names make the list be fetched again, but not more often than this."""
MOST_NAMES = 10_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}", re.ASCII)
"""What models are called. What an upstream lists otherwise is not learned: it could be any text."""
_DATE_SUFFIX = re.compile(r"-20\d\d-?\d\d-?\d\d$", re.ASCII)


class Catalog:
    """Known names; learns from the upstream's list at start, each hour, and when an unknown one was served."""

    def __init__(self, configured: Iterable[str], fetch_ids: Callable[[], Awaitable[list[str]]]) -> None:
        self._configured = frozenset(configured)
        self._fetch_ids = fetch_ids
        self._names = self._configured
        self._unknown_served = asyncio.Event()

    def name(self, model: str) -> str:
        """The name under which the ledger keeps a model that the upstream has served."""
        if model in self._names:
            return model
        self._unknown_served.set()
        return UNKNOWN_MODEL

    def knows(self, model: str) -> bool:
        """Whether the ledger may hold that name."""
        return model in self._names

    def learn(self, ids: Iterable[str]) -> None:
        """Take over the upstream's list. An id without its date is another name for the same model."""
        listed = set(filter(_NAME.fullmatch, itertools.islice(ids, MOST_NAMES)))
        self._names = self._configured | listed | {_DATE_SUFFIX.sub("", model_id) for model_id in listed}

    async def run(self) -> None:
        """Keep the list fresh until cancelled."""
        while True:
            with suppress(GatewayError):  # the operator was told of each upstream that gave no list
                self.learn(await self._fetch_ids())
            self._unknown_served.clear()
            await asyncio.sleep(MIN_REFRESH_SECONDS)
            try:
                await asyncio.wait_for(self._unknown_served.wait(), REFRESH_SECONDS - MIN_REFRESH_SECONDS)
            except TimeoutError:
                continue
