"""How long an upstream asks to wait, as SDKs read it (PROTOCOLS A.8)."""

import math
import re
from collections.abc import Iterable
from datetime import UTC
from email.utils import parsedate_to_datetime

from gateway.core import amounts

_SECONDS = re.compile(r"\d{1,9}(?:\.\d{1,9})?", re.ASCII)


def read_retry_after(headers: Iterable[tuple[str, str]], now_ms: int) -> int | None:
    """The milliseconds that an answer asks to wait, as SDKs read it (PROTOCOLS A.8); `None`: it says nothing clear.

    `retry-after-ms` in milliseconds, else `retry-after` in seconds or as an HTTP date.
    """
    found = {name.lower(): value.strip() for name, value in headers if name.lower().startswith("retry-after")}
    for name, unit_ms in (("retry-after-ms", 1), ("retry-after", amounts.SECOND_MS)):
        if _SECONDS.fullmatch(found.get(name, "")):
            return math.ceil(float(found[name]) * unit_ms)
    return _until_date(found.get("retry-after", ""), now_ms)


def _until_date(text: str, now_ms: int) -> int | None:
    try:
        moment = parsedate_to_datetime(text[:64])
        return max(0, amounts.to_ms(moment.replace(tzinfo=moment.tzinfo or UTC)) - now_ms)
    except (ValueError, TypeError, OverflowError, IndexError):  # the parser's, in one version or another
        return None
