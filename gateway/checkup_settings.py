"""The part of `check` that looks at settings: their file, names for people, where to listen, TLS, upstreams."""

import errno
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

from gateway.checkup_installation import WRITABLE_BY_OTHERS, Installation, mode_of
from gateway.checkup_tls import check_tls
from gateway.checkup_upstreams import check_upstreams
from gateway.core.errors import SettingsError
from gateway.core.findings import Finding, fault
from gateway.core.settings import LOOPBACK_HOSTS, Settings

MISSED = {
    "public_url": "texts and pages cannot say where users find this server",
    "contact": "users are not told whom to ask, and the privacy page names nobody",
    "service_name": "the pages have no title",
}
"""Settings that nothing refuses to run without, and what is missing then."""


def check_settings(installation: Installation) -> Iterator[Finding]:
    """The settings as `serve` would see them in the same environment."""
    try:
        settings = installation.load_settings()
    except SettingsError as error:
        yield fault(str(error))
        return
    except OSError as error:
        yield fault(
            f"the configuration file {error.filename} cannot be read: {error.strerror}; make it, or name another"
            " with --config"
        )
        return
    yield _check_file(installation.configuration)
    yield from check_upstreams(settings, installation.environment)
    yield from _check_names(settings)
    yield _check_listen(settings)
    if settings.has_tls:
        yield from check_tls(settings, installation.now_ms)


def _check_file(file: Path | None) -> Finding:
    if file is None:
        return Finding("there is no configuration file: settings come from the environment and defaults")
    mode = mode_of(file)
    if mode & WRITABLE_BY_OTHERS:
        return fault(
            f"{file} may be changed by others (mode {mode:04o}), who could send requests elsewhere:"
            f" run `chmod go-w {shlex.quote(str(file))}`"
        )
    return Finding(f"the configuration is {file}")


def _check_names(settings: Settings) -> Iterator[Finding]:
    for name, consequence in MISSED.items():
        value = getattr(settings, name)
        if value:
            yield Finding(f"{name} is {value}")
        else:
            yield fault(f"{name} is not set, so {consequence}: set it in opusmax.toml or as OPUSMAX_{name.upper()}")
    if _is_clear_text(settings.public_url):
        yield fault(
            f"public_url is {settings.public_url}: keys and texts would cross the network in the clear; serve TLS,"
            " or put a proxy that speaks it in front, and give the https:// address"
        )


def _is_clear_text(public_url: str) -> bool:
    scheme, _, rest = public_url.partition("://")
    host = rest.rsplit(":", 1)[0] if not rest.endswith("]") else rest
    return scheme == "http" and host.strip("[]") not in LOOPBACK_HOSTS


def _check_listen(settings: Settings) -> Finding:
    """Whether the address can be taken. Where something listens already, it is most likely the server."""
    host, port = settings.listen.host, settings.listen.port
    place = f"{host}:{port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return Finding(f"something listens on {place} already: the server, if it is running")
        if error.errno == errno.EACCES:
            return fault(
                f"this user may not listen on {place}: take a port from 1024 on, or give the service"
                " AmbientCapabilities=CAP_NET_BIND_SERVICE"
            )
        return fault(f"listen: {place} cannot be taken: {error.strerror}; name an address of this machine")
    return Finding(f"{place} is free to listen on")
