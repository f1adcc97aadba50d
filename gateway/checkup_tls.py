"""The part of `check` that looks at the server's own certificate: a handshake with itself, in memory."""

import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from gateway.checkup_installation import OPEN_TO_OTHERS, mode_of
from gateway.core.amounts import DAY_MS, show_time
from gateway.core.errors import SettingsError
from gateway.core.findings import Finding, fault
from gateway.core.settings import Settings
from gateway.tls import Certificate

SOON_MS = 14 * DAY_MS
"""A certificate that ends sooner should have been renewed: those of Let's Encrypt are with 30 days left."""


def check_tls(settings: Settings, now_ms: int) -> Iterator[Finding]:
    """Certificate and key fit each other, name this host, last, and the key is private."""
    key, certificate = Path(settings.tls_key), Path(settings.tls_cert)
    try:
        server = Certificate(settings).context
        mode = mode_of(key)
        peer = _shake_hands(server, certificate, urlsplit(settings.public_url).hostname)
    except ssl.SSLCertVerificationError as error:
        yield fault(f"tls_cert {certificate} will not be trusted: {error.verify_message}; get a new one")
        return
    except (SettingsError, OSError) as error:
        yield fault(f"{error}: give the PEM files of a certificate with its chain, and of its own key")
        return
    if mode & OPEN_TO_OTHERS:
        yield fault(f"{key} may be read by others (mode {mode:04o}): run `chmod go= {key}`")
    ends_ms = int(ssl.cert_time_to_seconds(str(peer["notAfter"]))) * 1_000
    if ends_ms < now_ms + SOON_MS:
        yield fault(f"tls_cert {certificate} ends at {show_time(ends_ms)}: renew it")
    else:
        yield Finding(f"tls_cert {certificate} fits its key and holds until {show_time(ends_ms)}")


def _shake_hands(server: ssl.SSLContext, certificate: Path, host: str | None) -> dict[str, object]:
    """The certificate as a client sees it that trusts its issuer. Raises `ssl.SSLError`."""
    client = ssl.create_default_context(cafile=certificate)
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    client.check_hostname = host is not None
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    waiting = True
    while waiting:
        waiting = False
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                waiting = True
    return dict(ends[0].getpeercert() or {})
