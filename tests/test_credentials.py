"""The operator's credentials: where they are looked for, and that a mistake is told without showing one."""

from pathlib import Path

import pytest

from gateway import credentials
from gateway.core.errors import SettingsError
from gateway.core.settings import Settings

TWO_UPSTREAMS = """
[[upstream]]
name = "groq"
protocol = "openai"
url = "https://api.groq.com/openai/v1"
credentials = ["GROQ_API_KEY", "SECOND_KEY"]

[[upstream]]
name = "local"
protocol = "openai"
url = "http://127.0.0.1:11434"
"""


def opened(text: str = "", **environment: str) -> dict[str, tuple[str, ...]]:
    """The credentials of each upstream by its name."""
    accesses = credentials.open_upstreams(Settings.load({}, {}, text), environment)
    return {access.upstream.name: access.credentials for access in accesses}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("one", ("one",)),
        (" one , two,,three\n", ("one", "two", "three")),
        ("one,two,one", ("one", "two")),
        ("", ()),
        (" , ", ()),
    ],
)
def test_several_credentials_stand_in_one_text_with_commas(
    text: str, found: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "A_KEY").write_text(text)
    file = str(tmp_path / "A_KEY")
    assert credentials.read("A_KEY", {"A_KEY": text}) == found
    assert credentials.read("A_KEY", {"A_KEY_FILE": file}) == found
    assert credentials.read("A_KEY", {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == found
    assert credentials.read(file, {}) == found


def test_the_variable_wins_over_its_file_and_that_over_systemd(tmp_path: Path) -> None:
    for name in ("file", "A_KEY"):
        (tmp_path / name).write_text(f"in-{name}")
    everywhere = {"A_KEY": "in-variable", "A_KEY_FILE": f"{tmp_path}/file", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    for found in ("in-variable", "in-file", "in-A_KEY"):
        assert credentials.read("A_KEY", everywhere) == (found,)
        del everywhere[next(iter(everywhere))]
    assert credentials.read("A_KEY", everywhere) == ()


@pytest.mark.parametrize("text", ["one\ntwo", "one\x00", "schlüssel", "one\r\nx-a: b"])
def test_what_could_not_stand_in_a_header_is_no_credential(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^A_KEY: a credential is printable ASCII") as refused:
        credentials.read("A_KEY", {"A_KEY": text})
    assert text not in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b"a" * (credentials.MAX_FILE_BYTES + 1))
    for name in ("missing", "binary", "large", ""):
        file = f"{tmp_path}/{name}"
        with pytest.raises(SettingsError, match=f"^A_KEY: {tmp_path}.*(cannot be read|is too large)"):
            credentials.read("A_KEY", {"A_KEY_FILE": file})
        with pytest.raises(SettingsError, match=f"^{file}.*(cannot be read|is too large)"):
            credentials.read(file, {})


def test_a_secret_in_the_place_of_its_file_is_not_shown() -> None:
    secret = "sk-ant-api03-abcdefghijklmnopqrstuvwxyz"
    with pytest.raises(SettingsError, match=r"^A_KEY: its file cannot be read") as refused:
        credentials.read("A_KEY", {"A_KEY_FILE": secret})
    assert secret not in str(refused.value)


def test_plain_upstreams_are_those_that_have_a_credential(tmp_path: Path) -> None:
    (tmp_path / "openai").write_text("in-file\n")
    assert opened(ANTHROPIC_API_KEY="a,b") == {"anthropic": ("a", "b")}
    assert opened(OPENAI_API_KEY_FILE=f"{tmp_path}/openai") == {"openai": ("in-file",)}
    both = opened(ANTHROPIC_API_KEY="a", OPENAI_API_KEY="o")
    assert list(both.items()) == [("anthropic", ("a",)), ("openai", ("o",))]


def test_without_any_credential_the_variables_and_the_demo_are_named() -> None:
    for environment in ({}, {"ANTHROPIC_API_KEY": "", "OPENAI_API_KEY": " , "}):
        with pytest.raises(SettingsError, match=r"set ANTHROPIC_API_KEY or OPENAI_API_KEY, .* demo"):
            opened(**environment)


def test_tables_stand_in_place_of_the_plain_upstreams() -> None:
    assert opened(TWO_UPSTREAMS, ANTHROPIC_API_KEY="a", GROQ_API_KEY="g,h", SECOND_KEY="h,i") == {
        "groq": ("g", "h", "i"),
        "local": ("",),
    }


def test_a_table_without_its_credential_is_named_with_the_variable() -> None:
    expected = (
        r"^upstream groq: credentials: there is none in GROQ_API_KEY or SECOND_KEY: set GROQ_API_KEY, or GROQ"
    )
    with pytest.raises(SettingsError, match=expected):
        opened(TWO_UPSTREAMS, ANTHROPIC_API_KEY="a", GROQ_API_KEY=" ")
    with pytest.raises(SettingsError, match=r"^upstream groq: credentials: GROQ_API_KEY: /none cannot be read"):
        opened(TWO_UPSTREAMS, GROQ_API_KEY_FILE="/none")


def test_an_empty_file_of_a_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.key").touch()
    text = TWO_UPSTREAMS.replace('["GROQ_API_KEY", "SECOND_KEY"]', f'"{tmp_path}/empty.key"')
    with pytest.raises(SettingsError, match=f"there is none in {tmp_path}/empty.key$"):
        opened(text)


def test_credentials_that_are_read_again_change_and_those_that_cannot_be_stay(tmp_path: Path) -> None:
    file = tmp_path / "groq.key"
    text = TWO_UPSTREAMS.replace('["GROQ_API_KEY", "SECOND_KEY"]', f'["{file}", "SECOND_KEY"]')
    environment = {"SECOND_KEY": "second"}
    file.write_text("old")
    before = credentials.open_upstreams(Settings.load({}, {}, text), environment)
    assert credentials.reopen_upstreams(before, environment) == before
    file.write_text("new,newer")
    after = credentials.reopen_upstreams(before, environment)
    assert [access.credentials for access in after] == [("new", "newer", "second"), ("",)]
    assert [access.upstream for access in after] == [access.upstream for access in before]
    file.unlink()
    assert credentials.reopen_upstreams(after, environment) == after
