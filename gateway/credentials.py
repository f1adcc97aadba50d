"""The operator's credentials for the upstreams: from the environment, files or systemd, never from a flag."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gateway.core.errors import SettingsError
from gateway.core.notation import looks_like_secret
from gateway.core.settings import Settings
from gateway.core.upstreams import CREDENTIAL_VARIABLES, Access, UpstreamSettings
from gateway.logs import Event

MAX_FILE_BYTES = 64 * 1024

_log = logging.getLogger("opusmax.upstream")


def open_upstreams(settings: Settings, environment: Mapping[str, str]) -> tuple[Access, ...]:
    """Every upstream that is configured, with its credentials; at least one.

    The plain upstreams count where there is a credential for them, those of tables must have one. Raises
    `SettingsError`, which names the upstream and where its credential was looked for.
    """
    if settings.upstream:
        return tuple(_open(upstream, environment) for upstream in settings.upstream)
    opened = tuple(
        Access(upstream=upstream, credentials=found)
        for upstream in settings.plain_upstreams
        if (found := _read_all(upstream, environment))
    )
    if not opened:
        anthropic, openai = CREDENTIAL_VARIABLES.values()
        raise SettingsError(
            f"no credential for a provider: set {anthropic} or {openai}, or {anthropic}_FILE to a file that holds"
            " it (to look around without one: opusmax.py demo)"
        )
    return opened


def reopen_upstreams(accesses: Sequence[Access], environment: Mapping[str, str]) -> tuple[Access, ...]:
    """The same upstreams with their credentials as they are now. Where they cannot be read, or are gone, an
    upstream keeps those that it has, and the log names it."""
    return tuple(_reopen(access, environment) for access in accesses)


def read(name: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The comma-separated credentials that `name`, `name_FILE` or a systemd credential called `name` gives; where
    `name` is a path, those of that file.

    Empty where there are none. Raises `SettingsError` for a file that cannot be read or holds control characters.
    """
    text = environment.get(name, "")
    if not text and (file := _file(name, environment)) is not None:
        text = _read_file(name, file)
    credentials = tuple(part.strip() for part in text.split(",") if part.strip())
    if not all(credential.isascii() and credential.isprintable() for credential in credentials):
        raise SettingsError(f"{name}: a credential is printable ASCII on one line")
    return tuple(dict.fromkeys(credentials))


def _open(upstream: UpstreamSettings, environment: Mapping[str, str]) -> Access:
    """An upstream of a table. One on this machine that names no credentials gets none."""
    if not upstream.credentials:
        return Access(upstream=upstream, credentials=("",))
    return Access(upstream=upstream, credentials=_require(upstream, environment))


def _reopen(access: Access, environment: Mapping[str, str]) -> Access:
    try:
        if access.upstream.credentials:
            return replace(access, credentials=_require(access.upstream, environment))
    except SettingsError as error:
        _log.error(Event.UPSTREAM_CREDENTIAL_NOT_READ, extra={"upstream": access.upstream.name}, exc_info=error)
    return access


def _require(upstream: UpstreamSettings, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Its credentials, at least one. Raises `SettingsError`."""
    try:
        credentials = _read_all(upstream, environment)
    except SettingsError as error:
        raise SettingsError(f"upstream {upstream.name}: credentials: {error}") from None
    if not credentials:
        raise SettingsError(f"upstream {upstream.name}: credentials: {_nothing_in(upstream.credentials)}")
    return credentials


def _read_all(upstream: UpstreamSettings, environment: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys(credential for source in upstream.credentials for credential in read(source, environment))
    )


def _nothing_in(sources: tuple[str, ...]) -> str:
    first = sources[0]
    if "/" in first:
        return f"there is none in {' or '.join(sources)}"
    return f"there is none in {' or '.join(sources)}: set {first}, or {first}_FILE to a file that holds it"


def _file(name: str, environment: Mapping[str, str]) -> Path | None:
    if "/" in name:
        return Path(name)
    if path := environment.get(f"{name}_FILE"):
        return Path(path)
    if folder := environment.get("CREDENTIALS_DIRECTORY"):
        granted = Path(folder) / name
        try:
            return granted if granted.is_file() else None
        except OSError:
            raise SettingsError("CREDENTIALS_DIRECTORY: that folder cannot be read") from None
    return None


def _read_file(name: str, file: Path) -> str:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise SettingsError(f"{_place(name, file)} is too large for a credential")
        return data.decode("utf-8")
    except (OSError, ValueError):
        raise SettingsError(f"{_place(name, file)} cannot be read") from None


def _place(name: str, file: Path) -> str:
    """Where a file is, unless somebody put the credential itself where its file belongs."""
    if "/" in name:
        return name
    return f"{name}: its file" if looks_like_secret(str(file)) else f"{name}: {file}"
