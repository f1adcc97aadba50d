"""Every setting: its name, its form, its default. Settings hold no secret; credentials.py reads those.

A setting comes from a flag, else from `OPUSMAX_<NAME>` in the environment, else from `opusmax.toml`, else
from the default below. An unknown name in the file, or a value that makes no sense, is a `SettingsError`
that names it: a typing error must not silently mean the default.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from gateway.core import notation
from gateway.core.errors import SettingsError
from gateway.core.notation import LOOPBACK_HOSTS
from gateway.core.prices import Prices, read_prices
from gateway.core.protocols import Protocol
from gateway.core.records import Budget
from gateway.core.upstreams import Timeouts, UpstreamSettings, plain_upstream, read_tables

__all__ = ["LOOPBACK_HOSTS", "Address", "Settings"]

MEBIBYTE = 2**20
TABLES = frozenset({"upstream", "prices"})
"""Settings that are tables of the file, and come from nowhere else."""
_HOST_PORT = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[0-9A-Za-z._-]*):(?P<port>\d{1,5})")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        return self.host in LOOPBACK_HOSTS

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a server, validated once."""

    database: str = "opusmax.db"
    listen: Address = Address("127.0.0.1", 8080)
    metrics_listen: Address | None = None
    """Where figures for Prometheus are told, to this machine only; `None`: nowhere."""
    anthropic_url: str = "https://api.anthropic.com"
    """Where the plain upstream of Anthropic's protocol is, if there is a credential for it."""
    openai_url: str = "https://api.openai.com"
    """The same for OpenAI's protocol."""
    upstream: tuple[UpstreamSettings, ...] = ()
    """The `[[upstream]]` tables of the file; they stand in place of the plain ones."""
    budgets: tuple[Budget, ...] = ()
    """What all keys together may use."""
    prices: Prices = ()
    """The `[prices]` of the file, at which costs are estimated for people; empty: none are shown."""
    public_url: str = ""
    """Where people reach this server, for links and texts; '' = not known."""
    contact: str = ""
    """Whom users ask for keys, deletion and help: a name, a mail address or a link."""
    service_name: str = "OpusMax"
    tls_cert: str = ""
    tls_key: str = ""
    behind_proxy: bool = False
    """A proxy that speaks TLS stands in front, so listening beyond loopback is meant."""
    drain_seconds: int = 30
    """How long running answers may take to finish when the server stops."""
    models: tuple[str, ...] = ()
    """Names of models that the ledger may hold besides those that the upstream lists."""
    max_body_bytes: int = 32 * MEBIBYTE
    """The largest request body: Anthropic's own limit."""
    upload_memory_bytes: int = 256 * MEBIBYTE
    """How much memory the large request bodies of all clients may take together, until they have been sent on."""
    max_connections: int = 10_000
    """The most connections of clients at once, if the system allows as many open files: a stream needs two."""
    unbounded_input_tokens: int = 50_000
    """Held for input that the body does not show: file ids, URLs, PDFs, server tools; for each of them."""
    default_output_tokens: int = 16_000
    """Held for the output of a request that sets no maximum, as OpenAI's protocol allows."""
    image_tokens: int = 4_784
    """Held for an image: the most that current models take for one (long edge 2,576 px)."""
    connect_timeout_seconds: int = 10
    first_byte_timeout_seconds: int = 600
    silence_timeout_seconds: int = 300
    """How long an upstream may pause within an answer; Claude Code gives up after the same time."""

    @classmethod
    def load(
        cls, flags: Mapping[str, object], environment: Mapping[str, str], file_text: str | None = None
    ) -> Self:
        """The settings out of all three sources. A flag that is `None` was not given. Raises `SettingsError`."""
        written = _parse_file(file_text)
        chosen: dict[str, Any] = {}
        for name in (field.name for field in fields(cls) if field.name not in TABLES):
            for value in (flags.get(name), environment.get(f"OPUSMAX_{name.upper()}"), written.get(name)):
                if value is not None:
                    chosen[name] = _parse(name, value)
                    break
        settings = cls(**chosen)
        settings._check()
        return replace(
            settings,
            upstream=read_tables(written.get("upstream", []), settings.timeouts),
            prices=read_prices(written.get("prices", {})),
        )

    def _check(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise SettingsError("tls_cert and tls_key go together: give both or neither")
        if not self.listen.is_loopback and not self.tls_cert and not self.behind_proxy:
            raise SettingsError(
                f"listening on {self.listen.host} without TLS would send keys in the clear:"
                " give --tls-cert and --tls-key, or --behind-proxy if a TLS proxy stands in front"
            )
        if self.metrics_listen is not None and not self.metrics_listen.is_loopback:
            raise SettingsError(
                "metrics_listen: figures are told to this machine only, on 127.0.0.1, ::1 or localhost;"
                " a collector elsewhere reads them through a proxy or a tunnel of yours"
            )
        if self.upload_memory_bytes < self.max_body_bytes:
            raise SettingsError("upload_memory_bytes must have room for one body of max_body_bytes at least")

    @property
    def timeouts(self) -> Timeouts:
        """For every upstream that has none of its own."""
        return Timeouts(
            connect_seconds=self.connect_timeout_seconds,
            first_byte_seconds=self.first_byte_timeout_seconds,
            silence_seconds=self.silence_timeout_seconds,
        )

    @property
    def plain_upstreams(self) -> tuple[UpstreamSettings, ...]:
        """Without tables there is one upstream for each protocol for which there is a credential."""
        urls = {Protocol.ANTHROPIC: self.anthropic_url, Protocol.OPENAI: self.openai_url}
        return tuple(plain_upstream(protocol, url, self.timeouts) for protocol, url in urls.items())

    @property
    def has_tls(self) -> bool:
        return bool(self.tls_cert)

    @property
    def origin(self) -> str:
        """The best known address of this server, for links."""
        return self.public_url or self.listen.origin


def _parse_file(text: str | None) -> Mapping[str, object]:
    try:
        written = tomllib.loads(text or "")
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"the configuration file is not TOML: {error}") from None
    known = {field.name for field in fields(Settings)}
    for name in written:
        if name not in known:
            raise SettingsError(f"the configuration file has an unknown setting: {name}")
    return written


def _parse(name: str, value: object) -> object:
    try:
        return _FORMS.get(name, str)(value)
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from None


def _address(value: object) -> Address:
    match = _HOST_PORT.fullmatch(str(value))
    if match is None or int(match["port"]) > 65_535:
        raise ValueError("an address looks like 127.0.0.1:8080 or [::1]:8080")
    return Address(match["host"].strip("[]") or "0.0.0.0", int(match["port"]))  # noqa: S104 - asked for by ":8080"


_FORMS: Mapping[str, Callable[[object], object]] = {
    "listen": _address,
    "metrics_listen": lambda value: _address(value) if value else None,
    "anthropic_url": notation.upstream_url,
    "openai_url": notation.upstream_url,
    "budgets": notation.budgets,
    "public_url": notation.public_origin,
    "behind_proxy": notation.flag,
    "drain_seconds": notation.seconds,
    "models": notation.names,
    "max_body_bytes": notation.count,
    "upload_memory_bytes": notation.count,
    "max_connections": notation.count,
    "unbounded_input_tokens": notation.count,
    "default_output_tokens": notation.count,
    "image_tokens": notation.count,
    "connect_timeout_seconds": notation.seconds,
    "first_byte_timeout_seconds": notation.seconds,
    "silence_timeout_seconds": notation.seconds,
}
"""How each setting that is not plain text is read."""
