"""How values are written in the environment, in flags and in opusmax.toml, and what they mean.

Each function takes what stood there and returns the value, or raises `ValueError` with a text for people. No text
repeats what stood there: it might be a secret that somebody put into the wrong place.
"""

import re
from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

from gateway.core import amounts
from gateway.core.records import Budget

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
MAX_GLOB_LENGTH = 128

_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]{1,64}){0,8}/?", re.ASCII)
"""A prefix of paths, without anything that addresses give a meaning."""
_SECRET = re.compile(
    r"\b(?:sk-|sk_|gsk_|xai-|AIza|pplx-|hf_|nvapi-|fw_|r8_|csk-|tgp_|eyJ|ghp_|ABSK|AKIA)[\w.-]{16}"
    r"|\b(?i:bearer|basic)\s+\S{8}"
)
"""How the credentials of many providers begin."""


def public_origin(value: object) -> str:
    """`https://gateway.example`, or '' for none."""
    if not value:
        return ""
    parts = _split(value)
    if parts.path not in ("", "/"):
        raise ValueError("an origin has no path")
    return f"{parts.scheme}://{parts.netloc}"


def upstream_url(value: object) -> str:
    """`https://api.example.com` or `https://example.com/api/v1`: no slash at its end. `http://` is for loopback."""
    parts = _split(value)
    if parts.scheme == "http" and parts.hostname not in LOOPBACK_HOSTS:
        raise ValueError("an upstream that is not on this machine needs https://")
    if not _PATH.fullmatch(parts.path):
        raise ValueError("the path of an address is made of letters, digits and . _ ~ -")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def flag(value: object) -> bool:
    word = str(value).lower()
    if word in ("true", "1", "yes"):
        return True
    if word in ("false", "0", "no", ""):
        return False
    raise ValueError("say true or false")


def seconds(value: object) -> int:
    """At least one second; a plain number means seconds."""
    text = str(value)
    return amounts.parse_duration(f"{text}s" if text.isdecimal() else text) // amounts.SECOND_MS


def count(value: object) -> int:
    return amounts.parse_amount(str(value))


def names(value: object) -> tuple[str, ...]:
    """A list, or a text with commas or spaces between its names."""
    written = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(written, list) or not all(isinstance(name, str) for name in written):
        raise ValueError("names look like a, b, c")
    return tuple(written)


def globs(value: object) -> tuple[str, ...]:
    """Names of models, each perhaps with `*`, `?` or `[...]` in it."""
    written = names(value)
    if not written:
        raise ValueError("name at least one model, or leave it out for all")
    if not all(glob.isascii() and glob.isprintable() and 0 < len(glob) <= MAX_GLOB_LENGTH for glob in written):
        raise ValueError("a model looks like gpt-5 or claude-*")
    if any(" " in glob for glob in written):
        raise ValueError("a model's name has no space in it")
    return written


def budgets(value: object) -> tuple[Budget, ...]:
    """`50M/24h`, or `200M` for ever; several as a list, or with commas or spaces between them."""
    found = tuple(_budget(text) for text in names(value))
    if len({budget.window_ms for budget in found}) < len(found):
        raise ValueError("there are two budgets for the same window")
    return found


def looks_like_secret(text: str) -> bool:
    return _SECRET.search(text) is not None


def known_fields(written: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a name that means nothing."""
    if unknown := sorted(set(written) - set(known)):
        shown = f": {unknown[0]}" if re.fullmatch(r"[A-Za-z_]{1,40}", unknown[0]) else ""
        raise ValueError(f"there is an unknown setting{shown}")


def _budget(text: str) -> Budget:
    tokens, slash, window = text.partition("/")
    amount = amounts.parse_amount(tokens)
    if amount == 0:
        raise ValueError("a budget is at least one token")
    return Budget(tokens=amount, window_ms=amounts.parse_duration(window) if slash else None)


def _split(value: object) -> SplitResult:
    parts = urlsplit(str(value))
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("an address looks like https://api.example.com")
    if parts.port == 0:  # and `port` itself raises for what is none
        raise ValueError("port 0 is none")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address has no user or password in it")
    return parts
