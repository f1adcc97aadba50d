"""`check` as an administrator calls it, over a sound installation and over many faults."""

import os
import re
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests import commands
from tests.commands import DATABASE, Run, fill_ledger, now_ms, start

run = commands.run


def test_check_passes_on_a_sound_installation(run: Run, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    run("key", "create", "alice")
    fill_ledger(tokens=1, started=now_ms())
    checked = run("check", OPUSMAX_PUBLIC_URL="https://ai.example.com", OPUSMAX_CONTACT="ops@example.com")
    assert (checked.code, "FAULT" in checked.out) == (0, False)


def test_check_has_a_line_for_each_fault(run: Run, tmp_path: Path) -> None:
    run("key", "create", "alice")
    fill_ledger(tokens=1, started=now_ms() + 3_600_000)
    Path(DATABASE).chmod(0o644)
    tmp_path.chmod(0o777)
    checked = run("check")
    faults = [line for line in checked.out.splitlines() if line.startswith("FAULT")]
    assert checked.code == 1
    for word in ("public_url", "contact", "read by others", "changed by others", "set the clock"):
        assert sum(word in fault for fault in faults) == 1
    assert len(faults) == 5
    assert [finding["ok"] for finding in run("check", "--json").json].count(False) == 5


def test_check_says_that_the_provider_cannot_be_reached(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        origin = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert (
            f"FAULT  the provider at {origin} cannot be reached" in run("check", OPUSMAX_ANTHROPIC_URL=origin).out
        )


def test_check_finds_a_damaged_database(run: Run) -> None:
    run("key", "create", "alice")
    fill_ledger(tokens=1, started=now_ms(), requests=2_000)
    with Path(DATABASE).open("r+b") as file:
        file.seek(8 * 4_096)
        file.write(b"\xff" * 3 * 4_096)
    checked = run("check")
    assert checked.code == 1
    assert re.search("FAULT.*(damaged|malformed|cannot be used)", checked.out)


def test_check_without_a_database_or_with_a_bad_setting_still_ends_well(run: Run) -> None:
    checked = run("check", OPUSMAX_LISTEN="nowhere")
    assert checked.code == 1
    assert "there is no database" in checked.out
    assert "listen:" in checked.out


def faults(output: str) -> list[str]:
    return [line.removeprefix("FAULT").strip() for line in output.splitlines() if line.startswith("FAULT")]


def certificate(days: int, host: str = "ai.example.com", mode: int = 0o600) -> dict[str, str]:
    """A certificate in the working directory, and the settings that name it."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += [
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
        "-subj",
        "/CN=test",
        "-addext",
        f"subjectAltName=DNS:{host}",
    ]
    subprocess.run([*command, "-days", str(days)], check=True, capture_output=True, timeout=20)
    Path("key.pem").chmod(mode)
    return {"OPUSMAX_TLS_CERT": "cert.pem", "OPUSMAX_TLS_KEY": "key.pem"}


def file_of(name: str, content: str, mode: int) -> str:
    Path(name).write_text(content)
    Path(name).chmod(mode)
    return name


SOUND = {"OPUSMAX_PUBLIC_URL": "https://ai.example.com", "OPUSMAX_CONTACT": "ops@example.com"}
PLANTED: Mapping[str, tuple[Callable[[], dict[str, str]], str]] = {
    "no public address": (lambda: {"OPUSMAX_PUBLIC_URL": ""}, "public_url is not set"),
    "nobody to ask": (lambda: {"OPUSMAX_CONTACT": ""}, "contact is not set"),
    "no name": (lambda: {"OPUSMAX_SERVICE_NAME": ""}, "service_name is not set"),
    "keys in the clear": (lambda: {"OPUSMAX_PUBLIC_URL": "http://ai.example.com"}, "give the https:// address"),
    "no TLS": (lambda: {"OPUSMAX_LISTEN": "0.0.0.0:0"}, "give --tls-cert and --tls-key, or --behind-proxy"),
    "not an address of this machine": (
        lambda: {"OPUSMAX_LISTEN": "192.0.2.1:0", "OPUSMAX_BEHIND_PROXY": "1"},
        "name an address",
    ),
    "half of TLS": (lambda: {"OPUSMAX_TLS_CERT": "cert.pem"}, "tls_cert and tls_key go together"),
    "no certificate there": (
        lambda: {"OPUSMAX_TLS_CERT": "no.pem", "OPUSMAX_TLS_KEY": "no.pem"},
        "give the PEM files",
    ),
    "the certificate ends soon": (lambda: certificate(days=3), "renew it"),
    "another host's certificate": (lambda: certificate(days=90, host="else.example.com"), "will not be trusted"),
    "others may read the TLS key": (lambda: certificate(days=90, mode=0o644), "run `chmod go= key.pem`"),
    "others may change the configuration": (
        lambda: {"OPUSMAX_CONFIG": file_of("open.toml", "", 0o666)},
        "run `chmod go-w open.toml`",
    ),
    "a setting that means nothing": (
        lambda: {"OPUSMAX_CONFIG": file_of("typo.toml", "contcat = 'x'", 0o600)},
        "unknown setting: contcat",
    ),
    "others may read the credential": (
        lambda: {"ANTHROPIC_API_KEY": "", "ANTHROPIC_API_KEY_FILE": file_of("a.key", "secret", 0o644)},
        "run `chmod go= a.key`",
    ),
    "no credential": (lambda: {"ANTHROPIC_API_KEY": ""}, "no credential for a provider: set ANTHROPIC_API_KEY"),
    "the provider is not there": (lambda: {"OPUSMAX_ANTHROPIC_URL": "http://127.0.0.1:1"}, "look at its address"),
    "TLS secrets are written down": (lambda: {"SSLKEYLOGFILE": "secrets"}, "unset it"),
    "a debug mode": (lambda: {"PYTHONASYNCIODEBUG": "1"}, "PYTHONASYNCIODEBUG is set"),
}


@pytest.mark.parametrize(("plant", "words"), PLANTED.values(), ids=PLANTED.keys())
def test_check_finds_each_fault_and_no_other(run: Run, plant: Callable[[], dict[str, str]], words: str) -> None:
    run("key", "create", "alice")
    environment = SOUND | {"SYSTEMD_UNIT_PATH": "/nowhere"}
    assert faults(run("check", **environment).out) == []
    checked = run("check", **environment | plant())
    [found] = faults(checked.out)
    assert checked.code == 1
    assert words in found


@pytest.mark.parametrize(
    ("mode", "words"), [(0o755, "run `chmod go= "), (0o770, "run `chmod go-w "), (0o750, "run `chmod go= ")]
)
def test_the_folder_of_the_database_is_for_its_owner(run: Run, tmp_path: Path, mode: int, words: str) -> None:
    run("key", "create", "alice")
    tmp_path.chmod(mode)
    [found] = faults(run("check", **SOUND).out)
    assert words in found


def test_a_log_that_python_starts_with_is_a_fault(run: Run, tmp_path: Path) -> None:
    run("key", "create", "alice")
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "sitecustomize.py").write_text(
        "import logging\nlogging.getLogger().addHandler(logging.StreamHandler())\n"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": "start", **SOUND}
    with start("check", cwd=tmp_path, environment=environment) as process:
        out, _ = process.communicate(timeout=30)
    assert [found for found in faults(out) if "StreamHandler" in found and "sitecustomize" in found] != []


@pytest.mark.parametrize("place", ["opusmax.service", "opusmax.service.d/keys.conf"])
@pytest.mark.parametrize("line", ["LoadCredential=ANTHROPIC_API_KEY:/etc/a.key", "ImportCredential=ANTHROPIC*"])
def test_a_credential_that_systemd_gives_is_not_called_missing_but_unseen(
    run: Run, tmp_path: Path, place: str, line: str
) -> None:
    run("key", "create", "alice")
    unit = tmp_path / "units" / place
    unit.parent.mkdir(parents=True)
    unit.write_text(f"[Service]\nExecStart=/opt/opusmax.py serve\n{line}\n")
    environment = SOUND | {"ANTHROPIC_API_KEY": "", "SYSTEMD_UNIT_PATH": str(tmp_path / "units")}
    checked = run("check", **environment)
    [told] = [each for each in checked.out.splitlines() if each.startswith("?")]
    assert (checked.code, faults(checked.out)) == (0, [])
    assert "to opusmax.service" in told
    assert "seen only there" in told
    assert "cannot be seen from here" in checked.err
    inside = run("check", **environment, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert (inside.code, len(faults(inside.out))) == (1, 1)
