"""What is installed is what the locks name, byte for byte, and nothing else runs when Python starts.

A lock with hashes protects only if all of it is hashed, if nothing was installed beside it, and if no package
brought a file that runs at every start of Python, imported or not: that is how stolen packages have worked.
"""

import base64
import hashlib
import re
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gateway.process import OLDEST_AIOHTTP

ROOT = Path(__file__).parent.parent
PACKAGES = Path(sysconfig.get_paths()["purelib"])

PRODUCTION, DEVELOPMENT, BILL = "requirements", "requirements-dev", "requirements-sbom"
LOCKS = (PRODUCTION, DEVELOPMENT, BILL)

PINNED = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[\w.+!]+)(?: +--hash=sha256:[0-9a-f]{64})+")
"""A line of a lock, its continuations joined: no address, no option, no marker, and at least one hash."""

RUNS_AT_START = ("*.pth", "*.start", "sitecustomize.*", "usercustomize.*")
"""What Python looks for in site-packages at each start: https://docs.python.org/3/library/site.html and PEP 829."""

KNOWN_AT_START = {"distutils-precedence.pth": "setuptools"}
"""Files that run code then, and whose they are: this one makes setuptools' own copy of distutils importable."""


def lines(file: str) -> list[str]:
    """Without comments and empty ones; continued lines joined."""
    text = (ROOT / file).read_text(encoding="utf-8").replace("\\\n", " ")
    stripped = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in stripped if line]


def pinned(lock: str) -> dict[str, str]:
    """The version of each package, by its normalised name."""
    found = (PINNED.fullmatch(line) for line in lines(f"{lock}.txt"))
    return {canonicalize_name(match["name"]): match["version"] for match in found if match}


def requirements(lock: str) -> list[Requirement]:
    return [Requirement(line) for line in lines(f"{lock}.in") if not line.startswith("-")]


def installed() -> list[metadata.Distribution]:
    return list(metadata.distributions(path=[str(PACKAGES)]))


def files_of(distribution: metadata.Distribution) -> list[metadata.PackagePath]:
    """As its RECORD lists them."""
    assert distribution.files is not None, f"{distribution.name} has no RECORD"
    return distribution.files


def is_unchanged(file: metadata.PackagePath) -> bool:
    """Whether it has the hash of the RECORD, which itself came in a wheel with the hash of the lock."""
    if file.hash is None:  # the RECORD itself, and what was compiled at the installation
        return file.name == "RECORD" or file.suffix == ".pyc"
    digest = hashlib.new(file.hash.mode, Path(file.locate()).read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=") == file.hash.value


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_of_a_lock_is_a_version_with_its_hashes_and_names_no_host(lock: str) -> None:
    assert [line for line in lines(f"{lock}.txt") if not PINNED.fullmatch(line)] == []
    for file in (f"{lock}.in", f"{lock}.txt"):
        assert "://" not in (ROOT / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_what_its_requirements_ask_for(lock: str) -> None:
    versions = pinned(lock)
    assert len(requirements(lock)) > 0
    for wanted in requirements(lock):
        assert wanted.specifier.contains(versions[canonicalize_name(wanted.name)]), str(wanted)


def test_what_runs_in_production_is_tested_in_the_same_versions() -> None:
    assert pinned(PRODUCTION).items() <= pinned(DEVELOPMENT).items()


def test_the_installed_packages_are_exactly_those_of_the_locks() -> None:
    """pip and setuptools too: every environment begins with some pip, and the lock for development replaces it."""
    found = sorted((canonicalize_name(package.name), package.version) for package in installed())
    assert found == sorted((pinned(PRODUCTION) | pinned(DEVELOPMENT)).items())


def test_the_lock_for_production_holds_all_that_its_packages_need() -> None:
    names = pinned(PRODUCTION)
    needs = [
        Requirement(line)
        for package in installed()
        if canonicalize_name(package.name) in names
        for line in package.requires or ()
    ]
    needed = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    assert len(needed) > 0
    assert [str(need) for need in needed if canonicalize_name(need.name) not in names] == []


def test_every_installed_file_belongs_to_a_package() -> None:
    listed = {str(file) for package in installed() for file in files_of(package)}
    present = (file.relative_to(PACKAGES) for file in PACKAGES.rglob("*") if not file.is_dir())
    assert {str(file) for file in present if "__pycache__" not in file.parts} - listed == set()


def test_no_file_that_runs_in_production_was_changed_since_its_installation() -> None:
    names = pinned(PRODUCTION)
    packages = [package for package in installed() if canonicalize_name(package.name) in names]
    changed = [str(file) for package in packages for file in files_of(package) if not is_unchanged(file)]
    assert len(packages) == len(names)
    assert changed == []


def test_nothing_runs_when_python_starts_but_what_is_known() -> None:
    found = {file.name for pattern in RUNS_AT_START for file in PACKAGES.glob(pattern)}
    brought = {
        file.name: package.name
        for package in installed()
        for file in files_of(package)
        if file.name in found and len(file.parts) == 1 and is_unchanged(file)
    }
    assert found == set(KNOWN_AT_START)
    assert brought == KNOWN_AT_START


@pytest.mark.parametrize("lock", [PRODUCTION, BILL])
def test_every_requirement_says_why_it_is_here(lock: str) -> None:
    text = (ROOT / f"{lock}.in").read_text(encoding="utf-8")
    for wanted in requirements(lock):
        assert re.search(rf"^{wanted.name}\S* +# \w.{{20}}", text, re.MULTILINE), f"{wanted.name} has no reason"


def test_the_oldest_aiohttp_that_serves_is_the_oldest_that_is_asked_for() -> None:
    [aiohttp] = [wanted for wanted in requirements(PRODUCTION) if wanted.name == "aiohttp"]
    assert str(aiohttp.specifier) == f">={'.'.join(map(str, OLDEST_AIOHTTP))}"
