"""What every page says about this installation: its name, whom to ask, and the address to give to clients."""

import re
from dataclasses import dataclass

from gateway.core.notation import LOOPBACK_HOSTS

UNKNOWN_ORIGIN = "https://ADDRESS-OF-THIS-SERVICE"
"""Stands where the address is neither configured nor sure."""
_MAIL_ADDRESS = re.compile(r"[^@\s?&]+@[^@\s?&]+\.[^@\s?&]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteView:
    """What every page shows."""

    name: str
    contact: str
    contact_link: str
    """Where the contact leads; '' = it is a text only."""
    style: str
    icon: str


def site_view(service_name: str, contact: str, version: str) -> SiteView:
    """`version` changes with the files under /static, so that browsers may keep them."""
    return SiteView(
        name=service_name,
        contact=contact or "the administrator of this service",
        contact_link=_contact_link(contact),
        style=f"/static/style.css?{version}",
        icon=f"/static/icon.svg?{version}",
    )


def own_origin(public_url: str, host: str, port: int, *, is_secure: bool) -> str:
    """The address to give to clients: the configured one, or this machine's own for who is on it.

    The `Host` header is compared, never repeated: whoever sends it could otherwise make the page name another
    server, to which readers would then send their keys. `port` is the one that this server listens on.
    """
    if public_url:
        return public_url
    if host in _loopback_authorities(port):
        return f"https://{host}" if is_secure else f"http://{host}"
    return UNKNOWN_ORIGIN


def _contact_link(contact: str) -> str:
    if contact.startswith("https://"):
        return contact
    return f"mailto:{contact}" if _MAIL_ADDRESS.fullmatch(contact) else ""


def _loopback_authorities(port: int) -> frozenset[str]:
    return frozenset(f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in LOOPBACK_HOSTS)
