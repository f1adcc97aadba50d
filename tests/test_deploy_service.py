"""The systemd unit: what it promises stands in it, systemd understands it, and finds little that is left open."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gateway.core.settings import Settings
from gateway.core.upstreams import CREDENTIAL_VARIABLES

UNIT = Path(__file__).parent.parent / "deploy" / "opusmax.service"
MOST_EXPOSURE = 1.5
"""Of 10, as `systemd-analyze security` counts. What is left: it needs the network and sees the host's root."""
PROMISED = {
    "Type": "notify",
    "User": "opusmax",
    "StateDirectory": "opusmax",
    "StateDirectoryMode": "0700",
    "UMask": "0077",
    "LimitCORE": "0",
    "MemorySwapMax": "0",
    "StandardOutput": "journal",
    "StandardError": "journal",
    "LogRateLimitBurst": "200",
    "ExecReload": "/bin/kill -HUP $MAINPID",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "MemoryDenyWriteExecute": "yes",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "SystemCallArchitectures": "native",
}

systemd_analyze = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(systemd_analyze is None, reason="systemd-analyze is not installed")


def directives() -> dict[str, list[str]]:
    """Each name with its values, in their order."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def test_the_unit_has_every_promised_property() -> None:
    found = directives()
    assert {name: found.get(name) for name in PROMISED} == {name: [value] for name, value in PROMISED.items()}
    assert found["SystemCallFilter"][:2] == ["@system-service", "~@privileged @resources"]


def test_every_provider_has_its_credential_from_systemd_and_none_stands_in_the_unit() -> None:
    loaded = dict(value.split(":") for value in directives()["LoadCredential"])
    assert set(loaded) == set(CREDENTIAL_VARIABLES.values())
    assert not [value for value in directives()["Environment"] if "API_KEY" in value]


def test_it_is_killed_only_after_its_answers_had_time_to_finish() -> None:
    assert int(directives()["TimeoutStopSec"][0].removesuffix("s")) > 2 * Settings().drain_seconds + 5


@pytest.fixture
def checked_unit(tmp_path: Path) -> Path:
    """The unit with a program that is there: systemd looks for it."""
    file = tmp_path / UNIT.name
    file.write_text(UNIT.read_text().replace("/opt/opusmax/.venv/bin/python", "/usr/bin/env"))
    return file


def analyze(*arguments: str) -> str:
    command = [str(systemd_analyze), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr


@needs_systemd
def test_systemd_understands_every_line(checked_unit: Path) -> None:
    assert checked_unit.name not in analyze("verify", str(checked_unit))


@needs_systemd
def test_systemd_finds_little_that_is_left_open(checked_unit: Path) -> None:
    said = analyze("security", "--offline=yes", "--no-pager", str(checked_unit))
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= MOST_EXPOSURE
