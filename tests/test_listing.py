"""The gateway's own list of models: what of the upstreams' lists is in it, in which form, and its pages."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import listing
from gateway.core.errors import BadRequest
from gateway.core.listing import (
    ListedModel,
    allowed,
    list_answer,
    may_relay,
    merge,
    model_answer,
    read_list,
)
from gateway.core.protocols import Protocol
from gateway.core.routing import Router
from gateway.core.wire import protocol_of
from tests.test_routing import access

ANTHROPIC, OPENAI = Protocol.ANTHROPIC, Protocol.OPENAI
HAIKU = (
    b'{"type":"model", "id":"claude-haiku-4-5","display_name":"Claude Haiku 4.5",\n'
    b'"created_at":"2025-10-15T00:00:00Z","lifecycle":"active","max_tokens":64000,"new_field":{"a":[1e3,"\\u00fc"]}}'
)
GPT = b'{"id": "gpt-5", "object": "model", "created": 1754425777, "owned_by": "system", "permission": []}'


def body(*entries: bytes) -> bytes:
    return b'{"object":"list","data":[' + b",".join(entries) + b'],"has_more":false}'


def entry(model_id: str, **fields: object) -> bytes:
    return json.dumps({"id": model_id, "object": "model", **fields}).encode()


def models(*ids: str, protocol: Protocol = OPENAI, **fields: object) -> tuple[ListedModel, ...]:
    return read_list(body(*(entry(model_id, **fields) for model_id in ids)), protocol)


def ids(found: tuple[ListedModel, ...]) -> list[str]:
    return [model.id for model in found]


def shown(found: tuple[ListedModel, ...], query: str = "") -> dict[str, Any]:
    """A page in Anthropic's form, its entries by their ids."""
    answer: dict[str, Any] = json.loads(list_answer(found, ANTHROPIC, query))
    answer["data"] = [model["id"] for model in answer["data"]]
    return answer


@pytest.mark.parametrize(
    ("names", "form"),
    [
        (["Anthropic-Version", "Authorization"], ANTHROPIC),
        (["X-Api-Key"], ANTHROPIC),
        (["Authorization", "anthropic-beta"], OPENAI),
        ([], OPENAI),
    ],
)
def test_the_headers_say_in_whose_form_a_client_wants_its_list(names: list[str], form: Protocol) -> None:
    assert protocol_of("/v1/models", names) is form
    assert protocol_of("/models/some-model", names) is form


def test_entries_of_the_clients_own_form_stay_as_they_came() -> None:
    haiku, gpt = read_list(body(HAIKU), ANTHROPIC), read_list(body(GPT), OPENAI)
    assert list_answer(haiku, ANTHROPIC, "") == (
        b'{"data":[' + HAIKU + b'],"has_more":false,"first_id":"claude-haiku-4-5","last_id":"claude-haiku-4-5"}'
    )
    assert list_answer(gpt, OPENAI, "") == b'{"object":"list","data":[' + GPT + b"]}"
    assert model_answer(haiku, ANTHROPIC, "claude-haiku-4-5") == HAIKU
    assert model_answer(gpt, OPENAI, "gpt-5") == GPT


def test_entries_of_another_form_are_written_anew() -> None:
    found = read_list(body(HAIKU, GPT, b'{"id":"plain"}'), ANTHROPIC)
    assert json.loads(list_answer(found, OPENAI, "limit=1"))["data"] == [
        {"id": "claude-haiku-4-5", "object": "model", "created": 1_760_486_400, "owned_by": "anthropic"},
        json.loads(GPT),
        {"id": "plain", "object": "model", "created": 0, "owned_by": "anthropic"},
    ]
    assert json.loads(list_answer(found, ANTHROPIC, ""))["data"][1:] == [
        {"type": "model", "id": "gpt-5", "display_name": "gpt-5", "created_at": "2025-08-05T20:29:37Z"},
        {"type": "model", "id": "plain", "display_name": "plain", "created_at": "1970-01-01T00:00:00Z"},
    ]


@pytest.mark.parametrize(
    ("fields", "created", "name"),
    [
        ({"created_at": "2025-10-15T02:00:00+02:00", "name": "Nice"}, 1_760_486_400, "Nice"),
        ({"created_at": "2025-10-15T00:00:00"}, 0, "m"),
        ({"created_at": "soon", "created": "soon", "display_name": 5}, 0, "m"),
        ({"created": -5, "display_name": ""}, 0, "m"),
        ({"created": 10**18, "display_name": "a\nb"}, 0, "m"),
        ({"created": 1.5, "display_name": "a" * 129}, 0, "m"),
        ({"created": 253_402_300_799}, 253_402_300_799, "m"),
    ],
)
def test_what_makes_no_sense_in_an_entry_is_left_out(fields: dict[str, object], created: int, name: str) -> None:
    (model,) = read_list(body(entry("m", **fields)), OPENAI)
    assert (model.created, model.display_name) == (created, name)
    assert json.loads(list_answer((model,), ANTHROPIC, ""))["data"][0]["display_name"] == name


@pytest.mark.parametrize(
    "odd",
    [
        *(b"5", b"[]", b"null", b'"a"', b"{}", b'{"id":5}', b'{"id":""}', b'{"id":"a b"}', b'{"id":"a\\nb"}'),
        *(b'{"id":"a","ID":"b"}', b'{"id":"a","\\u0069d":"b"}', b'{"id":"<b>"}', b'{"id":"../x"}', b'{"id":"%2e"}'),
        entry("a" * 129),
        b"{" + b",".join(b'"f%d":1' % number for number in range(300)) + b',"id":"a"}',
    ],
)
def test_an_entry_that_is_none_is_left_out_and_the_others_stay(odd: bytes) -> None:
    assert ids(read_list(body(entry("first"), odd, entry("last")), OPENAI)) == ["first", "last"]


@pytest.mark.parametrize("model_id", ["openai/gpt-5:free", "models/gemini-3", "ft:gpt-5:org::a1", "a+b@1.2_x"])
def test_vendors_give_models_names_of_many_forms(model_id: str) -> None:
    assert ids(models(model_id)) == [model_id]


def test_the_bare_list_of_some_vendors_is_read_as_well() -> None:
    assert ids(read_list(b' [{"id":"a"},{"id":"b"}]', OPENAI)) == ["a", "b"]


@pytest.mark.parametrize(
    "odd",
    [
        *(
            b"",
            b"null",
            b"5",
            b"{}",
            b'{"data":{}}',
            b'{"data":5}',
            b'{"data":[}',
            b"<html>",
            b'{"data":[],"data":[]}',
        ),
        b'{"data":["\xff"]}',
        b"[" * 100_000,
        b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_no_list_is_told_without_a_piece_of_it(odd: bytes) -> None:
    with pytest.raises(ValueError, match=r"^a list of models that cannot be read$") as unreadable:
        read_list(odd, OPENAI)
    assert unreadable.value.__cause__ is None


@given(
    st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(msgspec.json.encode)
)
def test_whatever_an_upstream_lists_is_read_or_refused(data: bytes) -> None:
    for text in (data, body(data)):
        try:
            found = read_list(text, OPENAI)
        except ValueError:
            continue
        json.loads(list_answer(found, OPENAI, ""))
        json.loads(list_answer(found, ANTHROPIC, ""))


def test_lists_are_merged_in_the_order_of_the_upstreams_and_each_model_stands_once() -> None:
    router = Router(
        [access("one", "a*", "b"), access("foreign", protocol=ANTHROPIC), access("two"), access("three")]
    )
    lists = [
        models("b", "a2", "c", "a1", "b", owned_by="one"),
        models("claude", "b", protocol=ANTHROPIC),
        models("z", "b", "c", "a1", owned_by="two"),
        (),
    ]
    merged = merge(lists, router, OPENAI)
    assert ids(merged) == ["b", "a2", "a1", "z", "c"]
    owners = [model["owned_by"] for model in json.loads(list_answer(merged, OPENAI, ""))["data"]]
    assert owners == ["one", "one", "one", "two", "two"]
    assert ids(merge(lists, router, ANTHROPIC)) == ["claude", "b"]


def test_whatever_is_listed_is_served() -> None:
    router = Router([access("one", "a*"), access("two", "b*")])
    listed = merge([models("a", "b", "c"), models("a", "b", "c")], router, OPENAI)
    assert ids(listed) == ["a", "b"]
    for model in listed:
        assert router.serving(OPENAI, model.id)


def test_a_client_whose_protocol_nobody_speaks_sees_the_others_models() -> None:
    router = Router([access("one", protocol=ANTHROPIC)])
    merged = merge([read_list(body(HAIKU), ANTHROPIC)], router, OPENAI)
    assert ids(merged) == ["claude-haiku-4-5"]


def test_a_key_sees_the_models_that_it_may_use() -> None:
    found = models("claude-a", "gpt-5", "gpt-5-mini", "GPT-6")
    assert ids(allowed(found, ("gpt-*", "claude-?"))) == ["claude-a", "gpt-5", "gpt-5-mini"]
    assert ids(allowed(found, ("gpt-5",))) == ["gpt-5"]
    assert allowed(found, ("none",)) == ()
    assert allowed(found, ()) == found
    assert model_answer(allowed(found, ("gpt-*",)), OPENAI, "claude-a") is None


def test_an_answer_is_relayed_only_where_it_says_the_same() -> None:
    router = Router([access("one"), access("two", "b*", protocol=ANTHROPIC)])
    assert may_relay(router, OPENAI, ())
    assert not may_relay(router, OPENAI, ("gpt-*",))
    assert not may_relay(router, ANTHROPIC, ())
    assert not may_relay(Router([access("one")]), ANTHROPIC, ())
    assert not may_relay(Router([access("one"), access("two")]), OPENAI, ())


FIFTY = models(*(f"m{number}" for number in range(50)))


@pytest.mark.parametrize(
    ("query", "first", "last", "has_more"),
    [
        ("", "m0", "m19", True),
        ("beta=true&lifecycle=active", "m0", "m19", True),
        ("limit=1000", "m0", "m49", False),
        ("limit=50", "m0", "m49", False),
        ("limit=49", "m0", "m48", True),
        ("limit=1", "m0", "m0", True),
        ("limit=10&after_id=m9", "m10", "m19", True),
        ("limit=10&after_id=m39", "m40", "m49", False),
        ("limit=10&after_id=m45", "m46", "m49", False),
        ("after_id=m49", None, None, False),
        ("limit=10&before_id=m20", "m10", "m19", True),
        ("limit=10&before_id=m10", "m0", "m9", False),
        ("limit=10&before_id=m5", "m0", "m4", False),
        ("before_id=m0", None, None, False),
    ],
)
def test_a_page_begins_and_ends_where_it_was_asked_to(
    query: str, first: str | None, last: str | None, has_more: bool
) -> None:
    page = shown(FIFTY, query)
    numbers = ids(FIFTY)
    expected = [] if first is None or last is None else numbers[numbers.index(first) : numbers.index(last) + 1]
    assert page == {"data": expected, "has_more": has_more, "first_id": first, "last_id": last}


@given(limit=st.integers(1, 60), backward=st.booleans())
def test_pages_show_every_model_once_in_order(limit: int, backward: bool) -> None:
    seen: list[str] = []
    query = f"limit={limit}" + ("&before_id=m49" if backward else "")
    while True:
        page = shown(FIFTY, query)
        seen = page["data"] + seen if backward else seen + page["data"]
        if not page["has_more"]:
            break
        cursor = f"before_id={page['first_id']}" if backward else f"after_id={page['last_id']}"
        query = f"limit={limit}&{cursor}"
    assert seen == ids(FIFTY)[: 49 if backward else 50]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        *((f"limit={text}", "limit") for text in ("0", "-1", "1001", "x", "1.5", "99999", "+5", "%D9%A3")),
        ("after_id=m50", "after_id"),
        ("before_id=%0A", "before_id"),
        ("after_id=m1&before_id=m2", "after_id"),
    ],
)
def test_a_page_that_there_cannot_be_is_refused(query: str, field: str) -> None:
    with pytest.raises(BadRequest, match=f"^{field}: "):
        list_answer(FIFTY, ANTHROPIC, query)


def test_openais_list_has_no_pages() -> None:
    assert len(json.loads(list_answer(FIFTY, OPENAI, "limit=5&after_id=none"))["data"]) == 50


def test_an_empty_list_is_one() -> None:
    assert list_answer((), OPENAI, "") == b'{"object":"list","data":[]}'
    assert (
        list_answer((), ANTHROPIC, "limit=1000") == b'{"data":[],"has_more":false,"first_id":null,"last_id":null}'
    )


def test_lists_are_bounded_in_number_and_size() -> None:
    router = Router([access("one"), access("two")])
    lists = [models(*(f"{name}{number}" for number in range(6_000))) for name in ("a", "b")]
    assert len(merge(lists, router, OPENAI)) == listing.MOST_MODELS
    many = body(*(entry(f"m{number}") for number in range(listing.MOST_MODELS + 5)))
    assert len(read_list(many, OPENAI)) == listing.MOST_MODELS

    (long,) = models("long", description="x" * listing.MAX_ENTRY_BYTES)
    assert json.loads(list_answer((long,), OPENAI, "")) == {
        "object": "list",
        "data": [{"id": "long", "object": "model", "created": 0, "owned_by": "openai"}],
    }
    heavy = models(*(f"m{number}" for number in range(400)), description="x" * 15_000)
    answer = list_answer(merge([heavy, ()], router, OPENAI), OPENAI, "")
    assert listing.MAX_LIST_BYTES - 20_000 < len(answer) < listing.MAX_LIST_BYTES + 400 * 100
    assert len(json.loads(answer)["data"]) == 400
