"""What the real SDKs of both providers, with either kind of client, make of refusals and errors: each is the
exception that its caller expects, with the gateway's own text and figures, or the provider's.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import anthropic
import openai
import pytest

from gateway.core.usage import Usage
from gateway.simulator import HTML_502, Script, Simulator
from tests import test_anthropic_sdk, test_openai_sdk
from tests.both_kinds import KINDS, Client, Kind, Use, anthropic_client, openai_client, taken
from tests.harness import ALL_CREDENTIALS, OPERATOR_CREDENTIAL, Database, now_ms, serving

HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sdk:
    """One provider's."""

    module: ModuleType
    client: Callable[..., AbstractAsyncContextManager[Client]]
    uses: Mapping[str, Use]
    unserved: Use

    def exception(self, name: str) -> type[Any]:
        found: type[Any] = getattr(self.module, name)
        return found


ANTHROPIC = Sdk(
    module=anthropic,
    client=anthropic_client,
    uses={
        "whole": lambda client: client.messages.create(**test_anthropic_sdk.ASK),
        "streamed": lambda client: client.messages.create(**test_anthropic_sdk.ASK, stream=True),
        "helper": lambda client: client.messages.stream(**test_anthropic_sdk.ASK),
    },
    unserved=lambda client: client.messages.batches.list(),
)
OPENAI = Sdk(
    module=openai,
    client=openai_client,
    uses={
        "chat": lambda client: client.chat.completions.create(**test_openai_sdk.CHAT),
        "streamed chat": lambda client: client.chat.completions.create(**test_openai_sdk.CHAT, stream=True),
        "response": lambda client: client.responses.create(**test_openai_sdk.RESPONSE),
        "streamed response": lambda client: client.responses.create(**test_openai_sdk.RESPONSE, stream=True),
    },
    unserved=lambda client: client.batches.list(),
)
both_sdks = pytest.mark.parametrize("sdk", [ANTHROPIC, OPENAI], ids=["anthropic", "openai"])
each_kind = pytest.mark.parametrize("kind", KINDS)


async def failure(sdk: Sdk, client: Client, use: Use) -> Any:
    """The exception that a use ends with; it comes before any event."""
    with pytest.raises(sdk.module.APIStatusError) as raised:
        await taken(client, use)
    return raised.value


def attempts_before(error: Any) -> str:
    """So often had the SDK tried before the attempt that it gave up after."""
    count: str = error.request.headers["x-stainless-retry-count"]
    return count


# The gateway's own refusals.


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """How it comes about, and how it is told."""

    exception: str
    status: int
    kind: str
    """`type` in Anthropic's envelope."""
    code: str | None = None
    """In OpenAI's."""
    text: str
    """Part of it."""
    limits: dict[str, Any] = field(default_factory=dict)
    """Of the key."""
    settings: dict[str, Any] = field(default_factory=dict)
    before: Usage | None = None
    """Of a request that goes through before."""
    is_final: bool = True
    """The SDKs do not try again."""


REFUSALS = {
    "disabled": Refusal(
        exception="AuthenticationError",
        status=401,
        kind="authentication_error",
        code="invalid_api_key",
        text="disabled",
        limits={"disabled": True},
    ),
    "expired": Refusal(
        exception="AuthenticationError",
        status=401,
        kind="authentication_error",
        code="invalid_api_key",
        text="expired",
        limits={"expires": now_ms() - 1},
    ),
    "model": Refusal(
        exception="PermissionDeniedError",
        status=403,
        kind="permission_error",
        code="model_not_found",
        text="may not use that model. Allowed: other-*",
        limits={"models": ("other-*",)},
    ),
    "never fits": Refusal(
        exception="BadRequestError",
        status=400,
        kind="invalid_request_error",
        code="invalid_prompt",
        text="can never fit",
        limits={"budgets": [(100, HOUR_MS)]},
    ),
    "does not fit now": Refusal(
        exception="RateLimitError",
        status=429,
        kind="billing_error",
        code="insufficient_quota",
        text="210 of 260 are left in 1h",
        limits={"budgets": [(260, HOUR_MS)]},
        before=Usage(input=30, output=20),
    ),
    "used up": Refusal(
        exception="RateLimitError",
        status=429,
        kind="billing_error",
        code="insufficient_quota",
        text="Token budget used up: 300 of 260 in 1h",
        limits={"budgets": [(260, HOUR_MS)]},
        before=Usage(input=250, output=50),
    ),
    "lifetime": Refusal(
        exception="RateLimitError",
        status=429,
        kind="billing_error",
        code="insufficient_quota",
        text="ops@example.org",
        limits={"budgets": [(260, None)]},
        settings={"contact": "ops@example.org"},
        before=Usage(input=250, output=50),
    ),
    "pace": Refusal(
        exception="RateLimitError",
        status=429,
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        text="1 request",
        limits={"requests_per_minute": 1},
        before=Usage(input=9, output=9),
        is_final=False,
    ),
    "too large": Refusal(
        exception="APIStatusError",
        status=413,
        kind="request_too_large",
        text="larger than this server takes",
        settings={"max_body_bytes": 50},
    ),
}


@both_sdks
@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
async def test_every_refusal_is_the_exception_for_it_and_is_tried_again_only_where_that_helps(
    provider: Simulator, database: Database, sdk: Sdk, refusal: Refusal
) -> None:
    text, key = await database.create_key("bob", **refusal.limits)
    async with serving(provider, database.path, ALL_CREDENTIALS, **refusal.settings) as origin:
        if refusal.before is not None:
            provider.next(Script(usage=refusal.before))
            async with sdk.client("async", origin, text) as client:
                await taken(client, next(iter(sdk.uses.values())))
        for kind in KINDS:
            async with sdk.client(kind, origin, text, max_retries=2 if refusal.is_final else 0) as client:
                for use in sdk.uses.values():
                    check_refusal(sdk, refusal, await failure(sdk, client, use))
    admitted = int(refusal.before is not None)
    assert len(provider.messages()) == len(database.rows(key)) == admitted


def check_refusal(sdk: Sdk, refusal: Refusal, error: Any) -> None:
    assert isinstance(error, sdk.exception(refusal.exception))
    assert (error.status_code, attempts_before(error)) == (refusal.status, "0")
    told = error.body["error"] if sdk is ANTHROPIC else error.body
    assert refusal.text in told["message"]
    assert refusal.text in str(error)
    assert error.request_id.startswith("req_")
    if sdk is ANTHROPIC:
        assert (error.type, told["type"], error.body["request_id"]) == (
            refusal.kind,
            refusal.kind,
            error.request_id,
        )
    else:
        assert error.code == told["code"] == refusal.code
    if refusal.status == 429:
        assert error.response.headers.get("x-should-retry") == ("false" if refusal.is_final else None)


@both_sdks
@each_kind
async def test_an_unknown_key_and_a_path_that_is_not_served_are_told_as_such(
    provider: Simulator, database: Database, sdk: Sdk, kind: Kind
) -> None:
    text, _ = await database.create_key("bob")
    async with serving(provider, database.path, ALL_CREDENTIALS) as origin:
        async with sdk.client(kind, origin, "sk-of-somebody-else", max_retries=2) as client:
            for use in sdk.uses.values():
                error = await failure(sdk, client, use)
                assert isinstance(error, sdk.exception("AuthenticationError"))
                assert attempts_before(error) == "0"
        async with sdk.client(kind, origin, text, max_retries=2) as client:
            error = await failure(sdk, client, sdk.unserved)
            assert isinstance(error, sdk.exception("NotFoundError"))
            assert error.request_id.startswith("req_")
    assert [received for received in provider.received if received.method != "GET"] == []


# What the provider says.


STATUSES = (400, 403, 404, 409, 413, 422, 429, 500, 503, 529)


@both_sdks
@each_kind
async def test_an_error_of_the_provider_is_the_same_exception_with_its_own_request_id(
    provider: Simulator, database: Database, sdk: Sdk, kind: Kind
) -> None:
    text, _ = await database.create_key("bob")
    scripts = [Script(status=status, error_message=f"Because of {status}.") for status in STATUSES]
    async with (
        serving(provider, database.path, ALL_CREDENTIALS) as origin,
        sdk.client(kind, provider.origin, OPERATOR_CREDENTIAL) as direct,
        sdk.client(kind, origin, text) as through,
    ):
        for provider.script in [*scripts, HTML_502]:
            for use in sdk.uses.values():
                expected, raised = await failure(sdk, direct, use), await failure(sdk, through, use)
                assert type(raised) is type(expected)
                assert raised.status_code == expected.status_code == provider.script.status
                assert what_was_said(raised) == what_was_said(expected)
                assert raised.request_id.startswith("req_simulated")


def what_was_said(error: Any) -> tuple[str, Any]:
    """Without the provider's request id, of which each request has its own."""
    said = json.dumps([str(error), error.body]).replace(str(error.request_id), "")
    return said, error.response.headers["content-type"]


@both_sdks
@each_kind
async def test_a_refused_operator_credential_is_a_server_error_that_is_not_tried_again(
    provider: Simulator, database: Database, sdk: Sdk, kind: Kind
) -> None:
    provider.script = Script(status=401)
    text, _ = await database.create_key("bob")
    async with (
        serving(provider, database.path, ALL_CREDENTIALS) as origin,
        sdk.client(kind, origin, text, max_retries=2) as client,
    ):
        for use in sdk.uses.values():
            error = await failure(sdk, client, use)
            assert (error.status_code, attempts_before(error)) == (502, "0")
            assert isinstance(error, sdk.exception("InternalServerError"))
    assert len(provider.messages()) == len(sdk.uses)
