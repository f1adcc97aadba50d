"""The operator's credentials for the upstream: from the environment, a file or systemd, never from a flag."""

from collections.abc import Mapping
from pathlib import Path

from gateway.core.errors import SettingsError


def read(name: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The comma-separated credentials that `name`, `name_FILE` or a systemd credential called `name` gives.

    Empty where there are none. Raises `SettingsError` for a file that cannot be read or holds control characters.
    """
    text = environment.get(name, "")
    if not text and (file := _file(name, environment)) is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise SettingsError(f"{name}: {file} cannot be read") from None
    credentials = tuple(part.strip() for part in text.split(",") if part.strip())
    if not all(credential.isascii() and credential.isprintable() for credential in credentials):
        raise SettingsError(f"{name}: a credential is printable ASCII on one line")
    return credentials


def _file(name: str, environment: Mapping[str, str]) -> Path | None:
    if path := environment.get(f"{name}_FILE"):
        return Path(path)
    folder = environment.get("CREDENTIALS_DIRECTORY")
    if folder and (path_in_folder := Path(folder) / name).is_file():
        return path_in_folder
    return None
