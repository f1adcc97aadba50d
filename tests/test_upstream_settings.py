"""The upstreams of opusmax.toml: what may stand in a table, and that no mistake passes or shows a secret."""

import pytest

from gateway.core.amounts import DAY_MS
from gateway.core.errors import SettingsError
from gateway.core.protocols import Protocol
from gateway.core.records import Budget
from gateway.core.settings import Settings
from gateway.core.upstreams import Access, Timeouts, UpstreamSettings

LEAST = 'name = "one"\nprotocol = "openai"\nurl = "https://api.example.com"\ncredentials = "A_KEY"\n'
EVERYTHING = """
silence_timeout_seconds = 77

[[upstream]]
name = "team-anthropic"
protocol = "anthropic"
url = "https://openrouter.ai/api/"
credentials = ["FIRST_API_KEY", "/etc/opusmax/second.key", "./third.key"]
credential_header = "Authorization"
models = ["claude-*", "anthropic/claude-*"]
connect_timeout_seconds = 3
first_byte_timeout_seconds = "2m"
budgets = "50M/24h"

[upstream.headers]
X-Title = "The team: a = b"
HTTP-Referer = "https://gateway.example"
OpenAI-Organization = "org-BqYbZ3kQ8vT1mN5xR7wL2pJd"

[[upstream]]
name = "local"
protocol = "openai"
url = "http://127.0.0.1:11434/v1"
splice_usage = false
"""
SECRETS = [
    "sk-ant-api03-abcdefghijklmnop_QRSTUV-0123456789AA",
    "sk-proj-abcdefghijklmnopqrstuvwx0123",
    "gsk_abcdefghijklmnopqrstuvwxyz0123456789",
    "AIzaSyA-abcdefghijklmnopqrstuvwxyz012345",
    "xai-abcdefghijklmnopqrstuvwxyz0123456789abcdefgh",
    "AKIAIOSFODNN7EXAMPLE",
    "A1B2C3D4E5F60718293A4B5C6D7E8F90",
    "f81d4fae7dec11d0a76500a0c91e6bf6",
    "Vq3kT9sLw2Zx8Rb5Ny7Pd1Mh",
    "/Vq3kT9sLw2Zx8Rb5Ny7Pd1Mh",
    "Bearer abcdefghijkl",
]


def upstreams(text: str) -> tuple[UpstreamSettings, ...]:
    return Settings.load({}, {}, text).upstream


def one(text: str) -> UpstreamSettings:
    (upstream,) = upstreams(f"[[upstream]]\n{text}")
    return upstream


def test_a_table_may_say_everything_and_inherits_what_it_leaves_out() -> None:
    team, local = upstreams(EVERYTHING)
    assert team == UpstreamSettings(
        name="team-anthropic",
        protocol=Protocol.ANTHROPIC,
        url="https://openrouter.ai/api",
        credentials=("FIRST_API_KEY", "/etc/opusmax/second.key", "./third.key"),
        credential_header="authorization",
        models=("claude-*", "anthropic/claude-*"),
        headers=(
            ("x-title", "The team: a = b"),
            ("http-referer", "https://gateway.example"),
            ("openai-organization", "org-BqYbZ3kQ8vT1mN5xR7wL2pJd"),
        ),
        timeouts=Timeouts(connect_seconds=3, first_byte_seconds=120, silence_seconds=77),
        budgets=(Budget(tokens=50_000_000, window_ms=DAY_MS),),
        splice_usage=False,
    )
    assert (local.credentials, local.models, local.headers, local.budgets) == ((), (), (), ())
    assert (local.splice_usage, local.credential_header) == (False, "authorization")
    assert local.timeouts == Timeouts(connect_seconds=10, first_byte_seconds=600, silence_seconds=77)


def test_chat_streams_are_asked_for_their_usage_unless_switched_off() -> None:
    assert one(LEAST).splice_usage
    assert not one(f"{LEAST}splice_usage = false").splice_usage
    assert not one(LEAST.replace("openai", "anthropic")).splice_usage


@pytest.mark.parametrize(
    ("protocol", "url", "origin", "base_path"),
    [
        ("anthropic", "https://api.anthropic.com", "https://api.anthropic.com", "/v1"),
        ("anthropic", "https://api.anthropic.com/v1", "https://api.anthropic.com", "/v1"),
        (
            "anthropic",
            "https://r.services.ai.azure.com/anthropic/",
            "https://r.services.ai.azure.com",
            "/anthropic/v1",
        ),
        ("anthropic", "https://openrouter.ai/api/v1", "https://openrouter.ai", "/api/v1"),
        ("openai", "https://api.openai.com", "https://api.openai.com", "/v1"),
        ("openai", "https://api.openai.com/v1/", "https://api.openai.com", "/v1"),
        ("openai", "https://api.groq.com/openai/v1", "https://api.groq.com", "/openai/v1"),
        ("openai", "https://g.example/v1beta/openai", "https://g.example", "/v1beta/openai"),
        ("openai", "http://[::1]:8000/v1", "http://[::1]:8000", "/v1"),
    ],
)
def test_an_address_is_read_as_the_clients_of_its_protocol_read_it(
    protocol: str, url: str, origin: str, base_path: str
) -> None:
    upstream = one(f'name = "a"\nprotocol = "{protocol}"\nurl = "{url}"\ncredentials = "A"')
    assert (upstream.origin, upstream.base_path) == (origin, base_path)


def test_without_tables_there_is_one_plain_upstream_for_each_protocol() -> None:
    settings = Settings.load({"openai_url": "https://o.example/v1", "silence_timeout_seconds": "9s"}, {})
    assert settings.upstream == ()
    anthropic, openai = settings.plain_upstreams
    assert (anthropic.name, anthropic.url, anthropic.credentials) == (
        "anthropic",
        "https://api.anthropic.com",
        ("ANTHROPIC_API_KEY",),
    )
    assert (anthropic.credential_header, anthropic.splice_usage) == ("x-api-key", False)
    assert (openai.name, openai.url, openai.credentials) == ("openai", "https://o.example/v1", ("OPENAI_API_KEY",))
    assert (openai.credential_header, openai.splice_usage) == ("authorization", True)
    assert openai.timeouts.silence_seconds == 9


@pytest.mark.parametrize("missing", ["name", "protocol", "url", "credentials"])
def test_what_a_table_lacks_is_named(missing: str) -> None:
    text = "\n".join(line for line in LEAST.splitlines() if not line.startswith(missing))
    label = "1" if missing == "name" else "one"
    with pytest.raises(SettingsError, match=f"^upstream {label}: {missing}: is missing"):
        one(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("name", value) for value in ('""', '"Groq"', '"a b"', '"-a"', "5", f'"{"a" * 33}"', '"a\\nb"')),
        *(("protocol", value) for value in ('"gemini"', '"OpenAI"', "1", '""')),
        *(("url", value) for value in ('"http://a.example"', '"a.example"', '"https://a.example/a/../b"', "5")),
        *(
            ("url", value)
            for value in ('"https://u:p@a.example"', '"https://a.example?key=1"', '"https://@a.example"')
        ),
        *(("url", value) for value in ('"https://a.example/v1/{id}"', '"https://a.example/a b"', '"https://a//b"')),
        *(("credentials", value) for value in ('""', "[]", "5", '"groq_api_key"', '"groq.key"', '["A_KEY", 5]')),
        *(("credential_header", value) for value in ('"cookie"', '"x-goog-api-key"', "5")),
        *(("models", value) for value in ("[]", '""', "5", '["a b"]', '[""]', '["ü"]', f'["{"a" * 129}"]')),
        *(("headers", value) for value in ("5", '["a"]', "{ x-a = 5 }", '{ "a b" = "c" }', '{ "" = "c" }')),
        *(("headers", value) for value in ('{ x-a = "b\\r\\nx-c: d" }', '{ x-a = "b\\n" }', '{ x-a = "\\u0000" }')),
        *(
            ("headers", value)
            for value in ('{ x-a = "" }', '{ x-a = " b" }', '{ x-a = "ü" }', '{ "x-a\\n" = "b" }')
        ),
        ("headers", '{ x-a = "b", X-A = "c" }'),
        ("headers", '{ x-a = "Bearer 0123456789" }'),
        *(("budgets", value) for value in ("5", '"0/24h"', '["1M/24h", "2M/1d"]', '"50M/day"')),
        *(("splice_usage", value) for value in ('"maybe"', "2")),
        *(
            (f"{part}_timeout_seconds", value)
            for part in ("connect", "first_byte", "silence")
            for value in ("0", "-1")
        ),
    ],
)
def test_a_value_that_makes_no_sense_is_named_with_its_upstream(field: str, value: str) -> None:
    kept = "\n".join(line for line in LEAST.splitlines() if not line.startswith(f"{field} "))
    label = "1" if field == "name" else "one"
    with pytest.raises(SettingsError, match=f"^upstream {label}: {field}: "):
        one(f"{kept}\n{field} = {value}")


@pytest.mark.parametrize(
    "name",
    [
        *("Host", "content-length", "Transfer-Encoding", "connection", "accept-encoding", "cookie", "Expect"),
        *("Authorization", "X-Api-Key", "api-key", "x-goog-api-key", "Proxy-Authorization", "X-Forwarded-For"),
        *("anthropic-version", "Anthropic-Beta", "content-type", "idempotency-key"),
    ],
)
def test_a_header_that_is_the_gateways_or_its_clients_is_not_set(name: str) -> None:
    with pytest.raises(SettingsError, match=f"^upstream one: headers: {name.lower()} "):
        one(f'{LEAST}headers = {{ {name} = "a" }}')


@pytest.mark.parametrize("text", ["silence = 5", 'api_key = "x"', 'Name = "x"', "headers.x.y = 1", '"a b" = 1'])
def test_a_field_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^upstream one: "):
        one(f"{LEAST}{text}")


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("field", ["name", "protocol", "url", "credentials", "credential_header", "api_key"])
def test_a_secret_in_the_wrong_place_is_refused_and_not_repeated(field: str, secret: str) -> None:
    if field == "name" and secret.startswith("f81d"):
        return  # thirty-two small letters and digits may be a name
    kept = "\n".join(line for line in LEAST.splitlines() if not line.startswith(f"{field} "))
    with pytest.raises(SettingsError) as refused:
        one(f'{kept}\n{field} = "{secret}"')
    assert secret[-12:].lower() not in str(refused.value).lower()
    assert refused.value.__cause__ is None
    if field == "credentials":
        assert "names a variable" in str(refused.value)


@pytest.mark.parametrize("secret", [*SECRETS[:6], SECRETS[-1]])
def test_a_secret_in_a_header_is_refused_and_not_repeated(secret: str) -> None:
    for text in (f'{{ x-a = "{secret}" }}', f'{{ x-a = "Key {secret}" }}', f'{{ "{secret}" = "a" }}'):
        with pytest.raises(SettingsError, match=r"^upstream one: headers: ") as refused:
            one(f"{LEAST}headers = {text}")
        assert secret not in str(refused.value)


@pytest.mark.parametrize("text", ["[upstream]\nname = 'a'", "upstream = 5", "upstream = ['a']", "upstream = 'a'"])
def test_what_is_no_list_of_tables_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^upstream: "):
        upstreams(text)


def test_two_upstreams_cannot_share_a_name_and_there_are_not_too_many() -> None:
    table = f"[[upstream]]\n{LEAST}"
    with pytest.raises(SettingsError, match=r"^upstream one: name: another"):
        upstreams(table * 2)
    with pytest.raises(SettingsError, match=r"^upstream: there are more than 64"):
        upstreams(table * 65)
    names = [f"u{number}" for number in range(64)]
    assert [found.name for found in upstreams("".join(table.replace("one", name) for name in names))] == names


def test_what_opens_an_upstream_is_not_shown() -> None:
    access = Access(upstream=one(LEAST), credentials=("the-credential",))
    assert "the-credential" not in f"{access!r} {access}"
