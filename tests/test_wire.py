"""What crosses the gateway: listed headers both ways, the protocol's own query parameters, and nothing else."""

from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import keys, wire
from gateway.core.errors import BadRequest, UnknownPath
from gateway.core.wire import Endpoint

IDENTITY = ("accept-encoding", "identity")
API_KEY = keys.ApiKey("k7f3m2q9x4ab", "0" * keys.SECRET_LENGTH).text

TO_UPSTREAM = [
    *("accept", "content-type", "user-agent", "anthropic-version", "anthropic-beta", "openai-beta"),
    *(
        "anthropic-dangerous-direct-browser-access",
        "idempotency-key",
        "x-stainless-lang",
        "x-stainless-retry-count",
    ),
    *("x-app", "x-claude-code-session-id", "x-anthropic-additional-protection", "x-codex-turn", "originator"),
    *("x-client-request-id", "session-id", "thread-id"),
]
NOT_TO_UPSTREAM = [
    *(
        "x-api-key",
        "authorization",
        "proxy-authorization",
        "cookie",
        "host",
        "connection",
        "te",
        "trailer",
        "upgrade",
    ),
    *("keep-alive", "transfer-encoding", "content-length", "content-encoding", "accept-encoding", "expect", "via"),
    *("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "cf-connecting-ip"),
    *("referer", "origin", "from", "accept-language", "sec-fetch-mode", "openai-organization", "openai-project"),
    *(
        "x-http-method-override",
        "traceparent",
        "baggage",
        "anthropic",
        "x-stainless",
        "xx-app",
        "accept-",
        "",
        " accept",
    ),
]
TO_CLIENT = [
    *("content-type", "content-length", "content-encoding", "cache-control", "retry-after", "retry-after-ms"),
    *("x-should-retry", "request-id", "x-request-id", "openai-processing-ms", "openai-version"),
    *("anthropic-version", "anthropic-something-new"),
]
NOT_TO_CLIENT = [
    *("anthropic-organization-id", "anthropic-workspace-id", "anthropic-ratelimit-requests-limit"),
    *("anthropic-ratelimit-unified-status", "anthropic-priority-input-tokens-limit"),
    *("anthropic-fast-output-tokens-reset", "x-ratelimit-limit-requests", "openai-organization", "openai-project"),
    *(
        "set-cookie",
        "set-cookie2",
        "alt-svc",
        "strict-transport-security",
        "server",
        "via",
        "cf-ray",
        "x-robots-tag",
    ),
    *(
        "location",
        "www-authenticate",
        "access-control-allow-origin",
        "connection",
        "keep-alive",
        "transfer-encoding",
    ),
    *("trailer", "upgrade", "x-envoy-upstream-service-time", "date", "nel", "report-to", "content-type-", ""),
]


def spelled(name: str) -> list[str]:
    return [name, name.upper(), name.title()]


@pytest.mark.parametrize("name", TO_UPSTREAM)
def test_a_listed_header_of_a_client_reaches_the_upstream(name: str) -> None:
    for spelling in spelled(name):
        assert wire.request_headers([(spelling, "Value, 1")]) == [(name, "Value, 1"), IDENTITY]


@pytest.mark.parametrize("name", NOT_TO_UPSTREAM)
def test_no_other_header_of_a_client_reaches_the_upstream(name: str) -> None:
    assert wire.request_headers([(spelling, "value") for spelling in spelled(name)]) == [IDENTITY]


@pytest.mark.parametrize("name", TO_CLIENT)
def test_a_listed_header_of_an_answer_reaches_the_client(name: str) -> None:
    for spelling in spelled(name):
        assert wire.answer_headers([(spelling, "Value, 1")]) == [(name, "Value, 1")]


@pytest.mark.parametrize("name", NOT_TO_CLIENT)
def test_no_other_header_of_an_answer_reaches_the_client(name: str) -> None:
    assert wire.answer_headers([(spelling, "value") for spelling in spelled(name)]) == []


def test_repeated_headers_keep_their_order() -> None:
    betas = [("anthropic-beta", "b"), ("x-app", "cli"), ("anthropic-beta", "a")]
    assert wire.request_headers(betas) == [*betas, IDENTITY]
    assert wire.answer_headers([("cache-control", "b"), ("x", "y"), ("cache-control", "a")]) == [
        ("cache-control", "b"),
        ("cache-control", "a"),
    ]


NAMES = st.sampled_from([*TO_UPSTREAM, *NOT_TO_UPSTREAM, *TO_CLIENT, *NOT_TO_CLIENT]) | st.text(max_size=20)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(NAMES, st.text(max_size=5)), max_size=8))
def test_headers_are_only_dropped_and_never_changed(headers: list[tuple[str, str]]) -> None:
    lowered = [(name.lower(), value) for name, value in headers]
    *sent, last = wire.request_headers(headers)
    assert last == IDENTITY
    for kept in (sent, wire.answer_headers(headers)):
        remaining = iter(lowered)
        assert all(header in remaining for header in kept)


@pytest.mark.parametrize(
    ("endpoint", "raw", "query"),
    [
        (Endpoint.MESSAGES, "", ""),
        (Endpoint.MESSAGES, "beta=true", "beta=true"),
        (Endpoint.COUNT_TOKENS, "beta=true", "beta=true"),
        (Endpoint.MODEL, "beta=true", "beta=true"),
        (
            Endpoint.MODELS,
            "limit=20&after_id=claude-x&before_id=a:b@c",
            "limit=20&after_id=claude-x&before_id=a%3Ab%40c",
        ),
        (Endpoint.MODELS, "%6cimit=%32%30", "limit=20"),
        (Endpoint.MESSAGES, "limit=20", ""),
        (Endpoint.MESSAGES, "x=1&beta=true&y=2", "beta=true"),
        (Endpoint.MESSAGES, "Beta=true&BETA=true&beta%00=true&beta[]=true", ""),
        (Endpoint.MESSAGES, "user=Ada%20Lovelace&prompt=%0d%0a&x=%ff", ""),
        (Endpoint.MESSAGES, "beta", ""),
        (Endpoint.MESSAGES, "beta=", ""),
        (Endpoint.MESSAGES, "beta=true;x=1", None),
        (Endpoint.MESSAGES, "beta=true%26x%3D1", None),
        (Endpoint.MESSAGES, "beta=true%0d%0aHost:%20evil", None),
        (Endpoint.MESSAGES, "beta=tr%FFue", None),
        (Endpoint.MESSAGES, "beta=a/../b", None),
        (Endpoint.MESSAGES, "beta=" + "x" * 257, None),
        (Endpoint.MODELS, "limit=20%23", None),
    ],
)
def test_only_the_parameters_of_the_protocol_cross(endpoint: Endpoint, raw: str, query: str | None) -> None:
    if query is None:
        with pytest.raises(BadRequest):
            wire.upstream_query(endpoint, raw)
    else:
        assert wire.upstream_query(endpoint, raw) == query


@pytest.mark.parametrize(
    "raw",
    [
        f"key={API_KEY}",
        f"x-api-key={API_KEY}&beta=true",
        f"beta={API_KEY}",
        API_KEY,
        f"beta={API_KEY.replace('-', '%2D')}",
        f"beta={API_KEY.replace('sk', '%73%6b')}",
        f"beta=x{API_KEY.replace('ant', 'a%6et')}",
    ],
)
def test_a_key_in_the_address_is_refused_however_it_is_spelled(raw: str) -> None:
    with pytest.raises(BadRequest) as caught:
        wire.upstream_query(Endpoint.MESSAGES, raw)
    assert "never in the address" in caught.value.message
    assert API_KEY not in caught.value.message


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(Endpoint), st.text(st.characters(codec="ascii"), max_size=60))
def test_whatever_a_query_is_what_crosses_means_nothing_in_an_address(endpoint: Endpoint, raw: str) -> None:
    for spelling in (raw, f"beta={raw}", f"x=1&beta={raw}&limit={raw}"):
        try:
            query = wire.upstream_query(endpoint, spelling)
        except BadRequest:
            continue
        names = [part.partition("=")[0] for part in query.split("&")] if query else []
        assert set(names) <= wire.QUERY_PARAMETERS[endpoint]
        assert not set(query) & set("/?#\\ \r\n\t;+[]")


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(Endpoint),
    st.sampled_from(["beta", "limit", "lifecycle", "x", "Beta", "be%74a", ""]),
    st.sampled_from(["", "=", "=="]),
    st.text("aZ09._:@=~+%2-& ", max_size=4),
)
def test_a_query_crosses_as_if_it_were_encoded_anew(endpoint: Endpoint, name: str, sign: str, value: str) -> None:
    """The usual query is passed on as it came: nothing of it would become another text."""
    try:
        query = wire.upstream_query(endpoint, f"{name}{sign}{value}")
    except BadRequest:
        return
    kept = [pair for pair in parse_qsl(f"{name}{sign}{value}") if pair[0] in wire.QUERY_PARAMETERS[endpoint]]
    assert query == urlencode(kept)


def test_every_endpoint_has_its_aliases_and_its_parameters() -> None:
    assert set(wire.QUERY_PARAMETERS) == set(Endpoint)
    assert Endpoint.MESSAGES.paths == ("/v1/messages", "/messages", "/v1/v1/messages")
    assert all(endpoint.path.startswith("/v1/") for endpoint in Endpoint)


@pytest.mark.parametrize("model_id", ["claude-x", "claude-opus-4-5@20251101", "a:b", "A.b_c-9", "x" * 128])
def test_a_model_id_may_stand_in_a_path(model_id: str) -> None:
    assert wire.MODEL_ID.fullmatch(model_id)


@pytest.mark.parametrize(
    "model_id",
    ["", ".", "..", "-a", "a/b", "a%2fb", "a?b", "a#b", "a b", "a\n", "\u00e4", "a;b", "a\\b", "x" * 129],
)
def test_a_model_id_that_means_something_in_an_address_may_not(model_id: str) -> None:
    assert not wire.MODEL_ID.fullmatch(model_id)


@pytest.mark.parametrize("prefix", ["/v1/models/", "/models/", "/v1/v1/models/"])
@pytest.mark.parametrize("name", ["claude-x", "qwen/qwen3-32b", "a/b/c:free", "models/x", "a/" * 63 + "bc"])
def test_a_models_name_in_a_clients_path_may_have_several_parts(prefix: str, name: str) -> None:
    assert wire.is_of_a_model(prefix + name)
    assert wire.model_in_path(prefix + name) == name


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "a/../b", "a/..", "../a", "a/.", "a/%2e", "a/b\n", "a/-b", "a/" * 64 + "b"]
)
def test_each_part_of_a_models_name_is_a_name(name: str) -> None:
    with pytest.raises(UnknownPath):
        wire.model_in_path(f"/v1/models/{name}")
