"""What `check` looks at, and how each of its parts asks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.core.errors import SettingsError
from gateway.core.findings import Finding, fault
from gateway.core.settings import Settings

WRITABLE_BY_OTHERS = 0o022
OPEN_TO_OTHERS = 0o077


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """The surroundings of one call of `check`."""

    database: Path
    configuration: Path | None
    """`None`: there is none, and none was named."""
    load_settings: Callable[[], Settings]
    """Raises `SettingsError`, or `OSError` for the file."""
    environment: Mapping[str, str]
    now_ms: int


def as_at_start(require: Callable[[], object], sound: str) -> Finding:
    """What `serve` would refuse at its start is a fault here."""
    try:
        require()
    except SettingsError as error:
        return fault(str(error))
    return Finding(sound)


def mode_of(path: Path) -> int:
    """The permissions. Raises `OSError`."""
    return path.stat().st_mode & 0o777
