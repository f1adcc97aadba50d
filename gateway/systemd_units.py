"""Which credentials systemd gives to which services: read from their unit files, because only the services can see
the credentials themselves (systemd.exec(5), section "Credentials").
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

UNIT_FOLDERS = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/lib/systemd/system",
)
"""Where systemd looks (systemd.unit(5)), unless SYSTEMD_UNIT_PATH says otherwise."""

_GRANT = re.compile(r"^\s*(?:Load|Set|Import)Credential(?:Encrypted)?\s*=\s*([\w.*?\[\]-]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A unit file gives a credential to a service."""

    name: str
    """The credential's, or a glob (`ImportCredential=`)."""
    unit: str
    file: Path

    def fits(self, names: Collection[str]) -> bool:
        return any(fnmatchcase(name, self.name) for name in names)


def grants(environment: Mapping[str, str]) -> list[Grant]:
    """What the unit files that can be read say, drop-ins (`….service.d/*.conf`) among them."""
    named = environment.get("SYSTEMD_UNIT_PATH", "")
    folders = [folder for folder in named.split(":") if folder] or UNIT_FOLDERS
    return [grant for folder in folders for grant in _in_folder(Path(folder))]


def _in_folder(folder: Path) -> Iterator[Grant]:
    for file in sorted([*folder.glob("*.service"), *folder.glob("*.service.d/*.conf")]):
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        unit = file.name if file.suffix == ".service" else file.parent.name.removesuffix(".d")
        for name in _GRANT.findall(text):
            yield Grant(name=name, unit=unit, file=file)
