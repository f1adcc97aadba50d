"""Settings: where they come from, what they may be, and that a typing error never silently means the default."""

from collections.abc import Mapping
from dataclasses import fields
from decimal import Decimal
from typing import Any

import pytest

from gateway.core.amounts import DAY_MS
from gateway.core.errors import SettingsError
from gateway.core.prices import Price
from gateway.core.records import Budget
from gateway.core.settings import TABLES, Address, Settings


def load(flags: Mapping[str, object] | None = None, file_text: str | None = None, **environment: str) -> Settings:
    return Settings.load(
        flags or {}, {f"OPUSMAX_{name.upper()}": text for name, text in environment.items()}, file_text
    )


def test_without_anything_the_defaults_hold() -> None:
    assert load() == load(file_text="") == Settings()
    assert (Settings().database, Settings().listen) == ("opusmax.db", Address("127.0.0.1", 8080))
    assert Settings().listen.is_loopback
    assert Settings().anthropic_url == "https://api.anthropic.com"
    assert Settings().openai_url == "https://api.openai.com"
    assert Settings().max_body_bytes == 32 * 2**20
    timeouts = (Settings().connect_timeout_seconds, Settings().first_byte_timeout_seconds)
    assert (*timeouts, Settings().silence_timeout_seconds) == (10, 600, 300)


def test_a_flag_wins_over_the_environment_and_that_over_the_file() -> None:
    written = 'contact = "file"\nservice_name = "file"\ndatabase = "file"'
    chosen = load({"contact": "flag", "service_name": None}, written, contact="env", service_name="env")
    assert (chosen.contact, chosen.service_name, chosen.database) == ("flag", "env", "file")


def test_every_setting_can_be_read_from_the_environment() -> None:
    texts = {
        "listen": "127.0.0.1:9",
        "metrics_listen": "[::1]:10",
        "anthropic_url": "https://api.example.com",
        "openai_url": "https://example.com/openai/v1/",
        "public_url": "https://gateway.example",
        "behind_proxy": "true",
        "drain_seconds": "5s",
        "models": "a, b c",
        "max_body_bytes": "2M",
        "upload_memory_bytes": "3M",
        "max_connections": "4k",
        "unbounded_input_tokens": "9k",
        "default_output_tokens": "7k",
        "image_tokens": "8",
        "budgets": "200M/30d, 50M",
        "connect_timeout_seconds": "1m",
        "first_byte_timeout_seconds": "2m",
        "silence_timeout_seconds": "3m",
    }
    plain = {each.name for each in fields(Settings)} - texts.keys() - TABLES
    words: dict[str, Any] = {name: f"the {name}" for name in plain}
    chosen = load(None, None, **texts, **words)
    assert chosen == Settings(
        **words,
        listen=Address("127.0.0.1", 9),
        metrics_listen=Address("::1", 10),
        anthropic_url="https://api.example.com",
        openai_url="https://example.com/openai/v1",
        public_url="https://gateway.example",
        behind_proxy=True,
        drain_seconds=5,
        models=("a", "b", "c"),
        max_body_bytes=2_000_000,
        upload_memory_bytes=3_000_000,
        max_connections=4_000,
        unbounded_input_tokens=9_000,
        default_output_tokens=7_000,
        image_tokens=8,
        budgets=(
            Budget(tokens=200_000_000, window_ms=30 * DAY_MS),
            Budget(tokens=50_000_000, window_ms=None),
        ),
        connect_timeout_seconds=60,
        first_byte_timeout_seconds=120,
        silence_timeout_seconds=180,
    )


def test_the_file_may_use_its_own_numbers_lists_and_truths() -> None:
    chosen = load(None, 'drain_seconds = 5\nimage_tokens = 7\nbehind_proxy = true\nmodels = ["a", "b c"]')
    assert (chosen.drain_seconds, chosen.image_tokens, chosen.behind_proxy) == (5, 7, True)
    assert chosen.models == ("a", "b c")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(
            ("listen", text)
            for text in ("", "8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "::1:80", "a b:1", "x:-1")
        ),
        *(
            ("anthropic_url", text)
            for text in ("", "api.example.com", "ftp://api.example.com", "https://", "https://[x")
        ),
        *(
            ("anthropic_url", text)
            for text in ("https://a.example/../v1", "https://a.example/v1?x=1", "https://a.example#x")
        ),
        *(("anthropic_url", text) for text in ("https://user@a.example", "https://user:pw@a.example")),
        *(
            ("anthropic_url", text)
            for text in ("http://a.example", "http://127.0.0.1.a.example", "http://10.0.0.1")
        ),
        *(
            ("anthropic_url", text)
            for text in ("http://127.0.0.1@a.example", "http://localhost.a.example", "//localhost")
        ),
        *(
            ("openai_url", text)
            for text in ("http://a.example/v1", "https://a.example/a b", "https://a.example/%2e")
        ),
        *(("budgets", text) for text in ("many", "1M/soon", "0/5h", "1M/5h, 2M/300m", "1M/", "/5h")),
        ("anthropic_url", "https://a.example:99999"),
        ("anthropic_url", "https://a.example:x"),
        *(
            ("public_url", text)
            for text in ("gateway.example", "https://gateway.example/path", "javascript:alert(1)")
        ),
        *(("behind_proxy", text) for text in ("maybe", "2", "on?", " ")),
        *(("drain_seconds", text) for text in ("", "soon", "-5s", "0s", "1.5s")),
        *(("image_tokens", text) for text in ("", "many", "-1", "1.5", "1e3")),
    ],
)
def test_a_value_that_makes_no_sense_is_named(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: "):
        load(None, None, **{name: text})


@pytest.mark.parametrize(
    "written",
    [
        "drain_seconds = -5",
        "connect_timeout_seconds = 0",
        "drain_seconds = true",
        "drain_seconds = 1.5",
        "image_tokens = -1",
        "image_tokens = true",
        "max_body_bytes = 1.5",
        "models = 5",
        "listen = 8080",
        "behind_proxy = 2",
        "anthropic_url = 5",
        "budgets = 5",
        "budgets = [5]",
    ],
)
def test_a_value_of_the_file_that_makes_no_sense_is_named(written: str) -> None:
    with pytest.raises(SettingsError, match=f"^{written.partition(' ')[0]}: "):
        load(None, written)


@pytest.mark.parametrize(
    "written", ["drain = 5", "Listen = 'x'", "[server]\nlisten = 'x'", "listen.host = 'x'", "x = 1"]
)
def test_a_name_that_is_no_setting_is_refused(written: str) -> None:
    with pytest.raises(SettingsError):
        load(None, written)


def test_prices_are_a_table_of_the_file_and_come_from_nowhere_else() -> None:
    written = '[prices]\n"claude-*" = { input = 3, output = 15, cache_write = 3.75, cache_read = 0.3 }'
    three = {"input": Decimal(3), "output": Decimal(15)}
    price = Price(**three, cache_write=Decimal("3.75"), cache_read=Decimal("0.3"))
    assert load(None, written).prices == (("claude-*", price),)
    assert load({"prices": "flag"}, None, prices="environment").prices == load(None, "[prices]").prices == ()


@pytest.mark.parametrize(
    "written", ["prices = 5", "[prices]\na = 5", "[[prices]]\na = 5", "[prices]\na.b.input = 5"]
)
def test_prices_that_make_no_sense_are_named(written: str) -> None:
    with pytest.raises(SettingsError, match=r"^prices: "):
        load(None, written)


def test_a_file_that_is_not_toml_is_told_so() -> None:
    with pytest.raises(SettingsError, match="not TOML"):
        load(None, "listen = ")


@pytest.mark.parametrize(
    ("text", "host", "port", "origin"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080, "http://127.0.0.1:8080"),
        ("localhost:0", "localhost", 0, "http://localhost:0"),
        ("[::1]:8080", "::1", 8080, "http://[::1]:8080"),
    ],
)
def test_an_address_on_this_machine_needs_no_tls(text: str, host: str, port: int, origin: str) -> None:
    chosen = load(None, None, listen=text)
    assert chosen.listen == Address(host, port)
    assert chosen.listen.is_loopback
    assert chosen.origin == origin
    assert load(None, None, listen=text, public_url="https://gateway.example/").origin == "https://gateway.example"


@pytest.mark.parametrize(
    "text", [":8080", "0.0.0.0:80", "[::]:80", "10.0.0.1:80", "gateway.example:80", "localhost.x:1"]
)
def test_listening_beyond_this_machine_needs_tls_or_a_proxy_that_has_it(text: str) -> None:
    with pytest.raises(SettingsError, match="without TLS"):
        load(None, None, listen=text)
    assert not load(None, None, listen=text, behind_proxy="yes").has_tls
    assert load(None, None, listen=text, tls_cert="c", tls_key="k").has_tls


@pytest.mark.parametrize("given", ["tls_cert", "tls_key"])
def test_certificate_and_key_go_together(given: str) -> None:
    with pytest.raises(SettingsError, match="go together"):
        load(None, None, **{given: "file"})


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9", "http://localhost:9", "http://[::1]:9", "https://a.example:8443"]
)
def test_an_upstream_is_this_machine_or_has_tls(url: str) -> None:
    assert load(None, None, anthropic_url=url).anthropic_url == url
    assert load(None, None, anthropic_url=f"{url}/").anthropic_url == url
    assert load(None, None, openai_url=f"{url}/api/v1/").openai_url == f"{url}/api/v1"


@pytest.mark.parametrize(
    ("text", "flag"),
    [("true", True), ("TRUE", True), ("1", True), ("yes", True), ("false", False), ("no", False), ("", False)],
)
def test_a_truth_is_read_as_people_write_it(text: str, flag: bool) -> None:
    assert load(None, None, behind_proxy=text).behind_proxy is flag


def test_figures_are_told_nowhere_unless_asked_for_and_never_beyond_this_machine() -> None:
    assert Settings().metrics_listen is load(None, None, metrics_listen="").metrics_listen is None
    assert load({"metrics_listen": "localhost:0"}).metrics_listen == Address("localhost", 0)
    for text in ("0.0.0.0:9464", ":9464", "[::]:9464", "192.0.2.1:9464", "gateway.lan:9464"):
        with pytest.raises(SettingsError, match=r"^metrics_listen: figures are told to this machine only"):
            load(None, None, metrics_listen=text)
