"""The part of `check` that looks at the program and its process: packages, debug modes, the folder of the data."""

import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from gateway import process
from gateway.checkup_installation import OPEN_TO_OTHERS, WRITABLE_BY_OTHERS, as_at_start, mode_of
from gateway.core.findings import Finding, fault

ROOT = Path(__file__).parent.parent
PACKAGES_FILE = ROOT / "requirements.txt"
PINNED_VERSION = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)
INSTALL_PACKAGES = "pip install --require-hashes -r requirements.txt"

DEBUG_MODES = ("PYTHONDEVMODE", "PYTHONASYNCIODEBUG", "PYTHONFAULTHANDLER")
"""Python's own. They show no values (process.py), but where Python was, and they make it slow."""

HARDEN = "from gateway import process; process.harden()"
"""In a process of its own: what it does cannot be undone."""


def check_program() -> Iterator[Finding]:
    """The packages, and how they were built."""
    yield _check_packages()
    yield as_at_start(process.require_safe_aiohttp, "aiohttp is safe to face clients, and has its parser in C")


def check_process(environment: Mapping[str, str]) -> Iterator[Finding]:
    """What a process that is started here would be open to."""
    yield as_at_start(
        lambda: process.refuse_leaking_environment(environment), "no variable has what passes written down"
    )
    modes = [name for name in DEBUG_MODES if environment.get(name)]
    if modes:
        yield fault(f"{', '.join(modes)} is set: a debug mode of Python, which makes the server slow; unset it")
    else:
        yield Finding("no debug mode of Python is on")
    yield _check_loggers()
    yield _check_hardening()


def check_folder(database: Path) -> Finding:
    """Only told, and not refused: where people share a group, their folders are often open to it."""
    folder = database.resolve().parent
    elsewhere = "or keep the database in a folder of its own"
    try:
        mode = mode_of(folder)
    except OSError as error:
        return fault(
            f"{folder} cannot be looked at: {error.strerror}; run `mkdir -m 700 {shlex.quote(str(folder))}`"
        )
    if mode & WRITABLE_BY_OTHERS:
        return fault(
            f"{folder} may be changed by others (mode {mode:04o}): run `chmod go-w {shlex.quote(str(folder))}`,"
            f" {elsewhere}"
        )
    if mode & OPEN_TO_OTHERS:
        return fault(
            f"{folder} may be looked into by others (mode {mode:04o}), who see from its files when requests come:"
            f" run `chmod go= {shlex.quote(str(folder))}`, {elsewhere}"
        )
    return Finding(f"{folder} has mode {mode:04o}")


def _check_loggers() -> Finding:
    """Nothing in Python's start (a .pth file, sitecustomize) has put a log of its own beside ours."""
    foreign = [type(handler).__name__ for handler in logging.getLogger().handlers if not _is_of_ours(handler)]
    if foreign:
        return fault(
            f"Python starts with a log of its own ({', '.join(foreign)}), which may write down what passes: take it"
            " out of sitecustomize and the .pth files of site-packages"
        )
    return Finding("no log but the server's own")


def _is_of_ours(handler: logging.Handler) -> bool:
    return type(handler).__module__.startswith(("gateway.", "_pytest."))


def _check_hardening() -> Finding:
    """No core dumps, no reading of the memory, files for the owner only: whether the system grants it."""
    tried = subprocess.run(  # noqa: S603 - this Python, and a constant
        [sys.executable, "-c", HARDEN], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if tried.returncode:
        said = tried.stderr.strip().splitlines()[-1:] or ["it failed"]
        return fault(said[0].rpartition("SettingsError: ")[2])
    return Finding("the system grants a process without core dumps, whose memory others cannot read")


def _check_packages() -> Finding:
    """The versions of what runs here are those that requirements.txt has pinned."""
    try:
        pinned = PINNED_VERSION.findall(PACKAGES_FILE.read_text(encoding="utf-8"))
    except OSError as error:
        return fault(f"{PACKAGES_FILE} cannot be read: {error.strerror}; it says which packages belong here")
    differing = [
        f"{name} {installed or 'is missing'} instead of {version}"
        for name, version in pinned
        if (installed := _installed_version(name)) != version
    ]
    if differing:
        return fault(
            f"other packages than those of requirements.txt: {', '.join(differing)}: run `{INSTALL_PACKAGES}`"
        )
    return Finding(f"the {len(pinned)} packages are those of requirements.txt")


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
