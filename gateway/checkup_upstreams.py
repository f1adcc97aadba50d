"""The part of `check` that looks at the upstreams: their credentials, and whether they can be reached."""

import asyncio
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from gateway.checkup_installation import OPEN_TO_OTHERS, mode_of
from gateway.core.errors import SettingsError
from gateway.core.findings import Finding, fault, unseen
from gateway.core.settings import Settings
from gateway.core.upstreams import Access, UpstreamSettings
from gateway.credentials import open_upstreams
from gateway.systemd_units import Grant, grants

UPSTREAM_SECONDS = 5


def check_upstreams(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Each by itself, so that one fault does not hide another; a missing credential in the words of `serve`."""
    opened: list[Access] = []
    granted = [] if "CREDENTIALS_DIRECTORY" in environment else grants(environment)
    for alone in [replace(settings, upstream=(one,)) for one in settings.upstream] or [settings]:
        try:
            opened += open_upstreams(alone, environment)
        except SettingsError as error:
            yield _missing_credential(str(error), alone.upstream or alone.plain_upstreams, granted)
    yield from map(_credential_finding, opened)
    configured = settings.upstream or tuple(access.upstream for access in opened)
    sources = [source for upstream in configured or settings.plain_upstreams for source in upstream.credentials]
    yield from _check_files(sources, environment)
    yield from asyncio.run(_reach(configured))


def _missing_credential(said: str, upstreams: Sequence[UpstreamSettings], granted: Sequence[Grant]) -> Finding:
    """A fault, unless a unit of systemd gives a credential of this name to a service, which alone sees it."""
    sources = {source for upstream in upstreams for source in upstream.credentials}
    found = [grant for grant in granted if grant.fits(sources)]
    if not found:
        return fault(said)
    told = ", ".join(f"{grant.name} to {grant.unit} ({grant.file})" for grant in found)
    names = ", ".join(upstream.name for upstream in upstreams)
    return unseen(
        f"the credential of upstream {names} is not in this environment; systemd gives {told}, and what it holds is"
        " seen only there: to look from inside, add `ExecStartPre=-… opusmax.py check` to the unit"
    )


def _credential_finding(access: Access) -> Finding:
    upstream, count = access.upstream, len(access.credentials)
    if not upstream.credentials:
        return Finding(f"upstream {upstream.name} needs no credential")
    sources = ", ".join(upstream.credentials)
    return Finding(f"upstream {upstream.name} has {count} credential{'s' * (count > 1)} from {sources}")


def _check_files(sources: Sequence[str], environment: Mapping[str, str]) -> Iterator[Finding]:
    """Files that hold credentials are for their owner alone. What is wrong with their content is told elsewhere."""
    named = {source if "/" in source else environment.get(f"{source}_FILE", "") for source in sources}
    for file in sorted(map(Path, named - {""})):
        try:
            mode = mode_of(file)
        except OSError:
            continue
        if mode & OPEN_TO_OTHERS:
            yield fault(
                f"{file} holds a credential and may be read by others (mode {mode:04o}):"
                f" run `chmod go= {shlex.quote(str(file))}`"
            )


async def _reach(upstreams: Sequence[UpstreamSettings]) -> list[Finding]:
    return await asyncio.gather(*map(_check_upstream, upstreams))


async def _check_upstream(upstream: UpstreamSettings) -> Finding:
    """A connection and, where there is TLS, a certificate that holds; nothing is asked."""
    parts = urlsplit(upstream.origin)
    is_tls = parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    provider, name = f"the provider at {upstream.origin}", f"(upstream {upstream.name})"
    try:
        async with asyncio.timeout(UPSTREAM_SECONDS):
            _reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=is_tls or None)
    except TimeoutError:
        return fault(f"{provider} does not answer {name}: look at the network and its firewall")
    except OSError as error:
        return fault(
            f"{provider} cannot be reached {name}: {error.strerror or error}; look at its address and the network"
        )
    writer.close()
    return Finding(f"{provider} can be reached {name}")
