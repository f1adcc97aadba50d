"""The estimate of a request's input: text by its bytes, pictures by their cap, what is hidden by an allowance."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.estimate import Estimator
from gateway.core.settings import Settings

IMAGE, UNBOUNDED = 1_000, 70_000
ESTIMATOR = Estimator(Settings(image_tokens=IMAGE, unbounded_input_tokens=UNBOUNDED))
BASE64 = "A" * 30_000
Block = dict[str, Any]


def estimate(body: bytes) -> int:
    return ESTIMATOR.of_messages(body, msgspec.json.decode(body, type=dict[str, msgspec.Raw])).tokens


def body_of(content: object, **fields: object) -> bytes:
    return json.dumps({"model": "claude-x", "messages": [{"role": "user", "content": content}], **fields}).encode()


def as_text(body: bytes, *, hidden: int = 0) -> int:
    """What the body counts as text, `hidden` bytes left out."""
    return -(-(len(body) - hidden) // 3)


def picture(data: str = BASE64) -> Block:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def pdf(data: str = BASE64) -> Block:
    return {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": data}}


HIDDEN = len(BASE64) + 2
"""The picture's bytes with their quotes."""


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=300), st.booleans())
def test_text_counts_three_bytes_a_token_over_the_whole_body(words: str, ensure_ascii: bool) -> None:
    content = [{"type": "text", "text": words}]
    body = json.dumps({"messages": [{"content": content}]}, ensure_ascii=ensure_ascii).encode(errors="replace")
    assert estimate(body) == as_text(body) >= len(words) / 3


def test_the_examples_of_an_estimate_come_out_as_written() -> None:
    assert Settings().image_tokens == 4_784
    default = Estimator(Settings())
    text = b'{"messages":"%b"}' % (b"x" * (80_000 - 15))
    assert default.of_messages(text, {}).tokens == 26_667
    frame = len(body_of([picture(""), {"type": "text", "text": ""}])) - 2
    body = body_of([picture("A" * 10**6), {"type": "text", "text": "x" * (20_000 - frame)}])
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    assert default.of_messages(body, fields).tokens == 6_667 + 4_784


@pytest.mark.parametrize(
    ("content", "pictures"),
    [
        ([picture()], 1),
        ([picture(), {"type": "text", "text": "and"}, picture()], 2),
        ([{"type": "tool_result", "tool_use_id": "t", "content": [picture(), picture()]}], 2),
        ([{"type": "tool_result", "content": [{"type": "tool_result", "content": [picture()]}]}], 1),
        ([{"type": "tool_result", "content": picture()}], 1),
        ([{"type": "document", "source": {"type": "content", "content": [picture()]}}], 1),
    ],
    ids=["alone", "two", "tool result", "deeper", "without a list", "document of blocks"],
)
def test_a_picture_holds_its_cap_and_not_its_bytes_wherever_it_stands(content: object, pictures: int) -> None:
    body = body_of(content)
    assert estimate(body) == as_text(body, hidden=pictures * HIDDEN) + pictures * IMAGE


@pytest.mark.parametrize(
    "source", [{"type": "url", "url": "https://example.org/a.png"}, {"type": "file", "file_id": "file_1"}]
)
def test_a_picture_by_address_holds_its_cap(source: Block) -> None:
    body = body_of([{"type": "image", "source": source}])
    assert estimate(body) == as_text(body) + IMAGE


@pytest.mark.parametrize(
    ("block", "hidden"),
    [
        (pdf(), HIDDEN),
        ({"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}}, 0),
        ({"type": "document", "source": {"type": "file", "file_id": "file_1"}}, 0),
        ({"type": "document"}, 0),
        ({"type": "container_upload", "file_id": "file_1"}, 0),
    ],
)
def test_what_the_body_does_not_show_holds_an_allowance_each(block: Block, hidden: int) -> None:
    one, two = body_of([block]), body_of([block, block])
    assert estimate(one) == as_text(one, hidden=hidden) + UNBOUNDED
    assert estimate(two) == as_text(two, hidden=2 * hidden) + 2 * UNBOUNDED


@pytest.mark.parametrize(
    "source",
    [
        {"type": "text", "media_type": "text/plain", "data": BASE64},
        {"type": "content", "content": BASE64},
        {"type": "content", "content": [{"type": "text", "text": BASE64}]},
    ],
)
def test_a_document_of_text_counts_as_text(source: Block) -> None:
    body = body_of([{"type": "document", "source": source}])
    assert estimate(body) == as_text(body)


def test_a_text_that_speaks_of_pictures_counts_as_text() -> None:
    body = body_of([{"type": "text", "text": json.dumps(picture())}])
    assert estimate(body) == as_text(body)
    not_shown = body_of([{"type": "tool_use", "id": "t", "name": "draw", "input": picture()}])
    assert estimate(not_shown) == as_text(not_shown)


def test_a_type_spelled_with_escapes_is_seen_all_the_same() -> None:
    for spelled in (b'"\\u0069mage"', b'"im\\u0061ge"', b'"\\u0069\\u006D\\u0061\\u0067\\u0065"'):
        body = body_of([picture()]).replace(b'"image"', spelled)
        assert estimate(body) == as_text(body, hidden=HIDDEN) + IMAGE
    body = body_of([pdf()]).replace(b'"document"', b'"d\\u006fcument"').replace(b'"type"', b'"typ\\u0065"')
    assert estimate(body) == as_text(body, hidden=HIDDEN) + UNBOUNDED


@pytest.mark.parametrize("place", [2**20 - 8, 2**20 - 7, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20])
def test_a_picture_is_seen_wherever_it_stands(place: int) -> None:
    """The body is looked through in pieces, and a name may stand across two of them."""
    begin = body_of([picture()]).index(b'"image"')
    body = b" " * (place - begin) + body_of([picture()])
    assert body.index(b'"image"') == place
    assert estimate(body) == as_text(body, hidden=HIDDEN) + IMAGE


@pytest.mark.parametrize("spelled", ["\\u4e2d", "\\ud83d\\ude00", "\\u0131mage", "\\\\n", "/u00"])
def test_an_escape_that_spells_no_name_is_text(spelled: str) -> None:
    """So its blocks need not be looked at, which is seen where they have a shape that is not known."""
    body = f'{{"model":"claude-x","messages":{{"x":"{spelled}"}}}}'.encode()
    assert estimate(body) == as_text(body)
    assert estimate(body.replace(b'"x"', b'"\\u0078"')) > UNBOUNDED


@pytest.mark.parametrize(
    ("tool", "runs_upstream"),
    [
        ({"name": "mine", "input_schema": {}}, False),
        ({"type": None, "name": "mine"}, False),
        ({"type": "custom", "name": "mine"}, False),
        ({"type": "bash_20250124", "name": "bash"}, False),
        ({"type": "text_editor_20250728", "name": "edit"}, False),
        ({"type": "computer_20250124", "name": "computer"}, False),
        ({"type": "memory_20250818", "name": "memory"}, False),
        ({"type": "web_search_20250305", "name": "web_search"}, True),
        ({"type": "web_fetch_20250910", "name": "web_fetch"}, True),
        ({"type": "code_execution_20250825", "name": "code_execution"}, True),
        ({"type": "advisor_20260301", "name": "advisor"}, True),
        ({"type": "a_tool_of_tomorrow", "name": "x"}, True),
    ],
)
def test_a_tool_that_the_provider_runs_holds_an_allowance(tool: Block, runs_upstream: bool) -> None:
    body = body_of("hi", tools=[tool])
    assert estimate(body) == as_text(body) + UNBOUNDED * runs_upstream
    twice = body_of("hi", tools=[tool, tool])
    assert estimate(twice) == as_text(twice) + 2 * UNBOUNDED * runs_upstream


def test_remote_tool_servers_hold_an_allowance() -> None:
    body = body_of("hi", mcp_servers=[{"type": "url", "url": "https://example.org"}])
    assert estimate(body) == as_text(body) + UNBOUNDED


@pytest.mark.parametrize("tools", [5, "web_search", {"type": "web_search"}, [5], [["web_search"]], [{"type": 5}]])
def test_tools_of_a_shape_that_is_not_known_hold_an_allowance(tools: object) -> None:
    body = body_of("hi", tools=tools)
    assert estimate(body) == as_text(body) + UNBOUNDED


@pytest.mark.parametrize(
    "content",
    [
        5,
        [5],
        [[picture()]],
        [picture() | {"type": 5}, picture()],
        [{"type": "image", "source": 5}],
        {"a": [picture()]},
    ],
)
def test_content_of_a_shape_that_is_not_known_never_hides_its_bytes(content: object) -> None:
    body = body_of(content)
    assert estimate(body) >= as_text(body)


@pytest.mark.parametrize("tools", [None, []])
def test_a_body_without_tools_or_messages_holds_its_bytes(tools: object) -> None:
    body = json.dumps({"model": "image", "tools": tools}).encode()
    assert estimate(b"{}") == 1
    assert as_text(body) <= estimate(body) <= as_text(body) + UNBOUNDED


def test_the_hold_of_a_claude_code_request_is_some_27_000_tokens() -> None:
    assert 26_000 < estimate(body_of("x" * 80_000)) < 27_500
