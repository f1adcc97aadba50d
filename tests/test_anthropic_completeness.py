"""What Anthropic's protocol may report, in every shape that its documentation has, is what the ledger holds.

Real sockets and the real ledger; `test_metering.py` has the same rules as arithmetic.
"""

import json
from hashlib import sha256
from typing import Any

import aiohttp
import pytest

from gateway.core.records import Key
from gateway.core.usage import Usage
from gateway.simulator import MODELS, Script, Simulator
from tests.harness import MODEL, Database, Row, ask, hold_of

AliceKey = tuple[str, Key]
Event = dict[str, Any]
EVENTS = "text/event-stream; charset=utf-8"
TOP = Usage(input=100, output=50, cache_read=10)
DECLINED = Usage(input=300, output=2, cache_write=5)
COMPACTED = Usage(input=900, output=40, cache_write=6)
ADVISED = Usage(input=70, output=700, cache_read=8)
both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


async def recorded(
    http: aiohttp.ClientSession,
    provider: Simulator,
    database: Database,
    alice: AliceKey,
    *,
    stream: bool,
    model: str = MODEL,
) -> Row:
    """The row of one request, which names `model`, and of which all bytes came back as the provider sent them."""
    async with http.post("/v1/messages", json=ask(stream=stream), headers={"x-api-key": alice[0]}) as answer:
        body = await answer.read()
    [received] = provider.messages()
    assert (answer.status, sha256(body).hexdigest()) == (200, received.answer_sha256)
    [row] = database.rows(alice[1])
    assert (row.status, row.model) == (200, model)
    return row


def events(*data: Event) -> bytes:
    """As a stream, in the spacing that Anthropic uses."""
    pairs = [(each["type"], json.dumps(each, separators=(",", ":"))) for each in data]
    return "".join(f"event: {name}\ndata: {text}\n\n" for name, text in pairs).encode()


def start(**fields: Any) -> Event:
    envelope = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "content": []}
    return {"type": "message_start", "message": envelope | {"stop_reason": None, "stop_sequence": None} | fields}


def block(content: Event, *deltas: Event, index: int = 0) -> list[Event]:
    """A content block from its start to its stop."""
    return [
        {"type": "content_block_start", "index": index, "content_block": content},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


TEXT = block({"type": "text", "text": ""}, {"type": "text_delta", "text": "word" * 20})
TEXT_TOKENS = 20
STOP: Event = {"type": "message_stop"}


def ended(**fields: Any) -> Event:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}} | fields


# Steps of a request: `iterations`.


@both_ways
@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([("message", TOP)], TOP),
        (
            [("message", TOP), ("compaction", COMPACTED)],
            Usage(input=1_000, output=90, cache_write=6, cache_read=10),
        ),
        ([("message", TOP), ("advisor_message", ADVISED)], Usage(input=170, output=750, cache_read=18)),
        (
            [("message", DECLINED), ("fallback_message", TOP)],
            Usage(input=400, output=52, cache_write=5, cache_read=10),
        ),
        (
            [("message", DECLINED), ("compaction", COMPACTED), ("advisor_message", ADVISED), ("later", TOP)],
            Usage(input=1_370, output=792, cache_write=11, cache_read=18),
        ),
        ([("message", Usage(input=60, output=70))], Usage(input=100, output=70, cache_read=10)),
        ([("message", Usage())], TOP),
    ],
    ids=["one", "compaction", "advisor", "fallback", "all", "less than the top level", "nothing"],
)
async def test_the_steps_of_a_request_are_charged_together_and_never_below_the_top_level(
    http: aiohttp.ClientSession,
    provider: Simulator,
    database: Database,
    alice: AliceKey,
    steps: list[tuple[str, Usage]],
    expected: Usage,
    stream: bool,
) -> None:
    provider.script = Script(usage=TOP, iterations=tuple(steps))
    row = await recorded(http, provider, database, alice, stream=stream)
    assert (row.usage, row.estimated) == (expected, False)
    assert provider.messages()[0].reported == expected


@both_ways
@pytest.mark.parametrize("other", [MODELS[1], "a-model-that-nobody-lists"])
async def test_a_request_that_another_model_served_is_charged_for_all_attempts_under_its_name_if_that_is_known(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey, stream: bool, other: str
) -> None:
    top = {"input_tokens": 100, "output_tokens": 50}
    declined = {"type": "message", "model": MODEL, "input_tokens": 300, "output_tokens": 2}
    usage = top | {"iterations": [declined, {"type": "fallback_message", "model": other} | top]}
    gave_way = {"type": "fallback", "from": {"model": MODEL}, "to": {"model": other}}
    message = start(content=[gave_way], usage=usage, stop_reason="end_turn", model=other)["message"]
    whole = events(start(usage=top), *block(gave_way), *TEXT, ended(usage=usage), STOP)
    provider.script = Script(
        body=whole if stream else json.dumps(message).encode(), content_type=EVENTS if stream else None
    )
    row = await recorded(http, provider, database, alice, stream=stream, model=other if other in MODELS else MODEL)
    assert (row.usage, row.estimated) == (Usage(input=400, output=52), False)


# Input that grows: tools that the provider runs.


@pytest.mark.parametrize("message_deltas", [1, 3])
async def test_input_that_is_stated_again_takes_the_place_of_what_was_said_first(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey, message_deltas: int
) -> None:
    """What a search found is input too: the figures of the documented example, with the search result's block."""
    provider.script = Script(
        start_usage=Usage(input=2_679, output=3, cache_read=4),
        usage=Usage(input=10_682, output=510, cache_write=7, cache_read=9),
        restate_input=True,
        message_deltas=message_deltas,
        long_data_line_bytes=40_000,
    )
    row = await recorded(http, provider, database, alice, stream=True)
    assert (row.usage, row.estimated) == (provider.script.usage, False)


async def test_input_that_is_not_stated_again_stays_what_was_said_first(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey
) -> None:
    provider.script = Script(
        start_usage=Usage(input=2_679, output=3, cache_write=5), usage=Usage(input=9, output=51)
    )
    row = await recorded(http, provider, database, alice, stream=True)
    assert (row.usage, row.estimated) == (Usage(input=2_679, output=51, cache_write=5), False)


# Writing to the cache.


SPLIT = {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 70}


@both_ways
@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"cache_creation_input_tokens": 100, "cache_creation": SPLIT}, 100),
        ({"cache_creation_input_tokens": 100}, 100),
        ({"cache_creation_input_tokens": 100, "cache_creation": None}, 100),
        ({"cache_creation_input_tokens": 120, "cache_creation": SPLIT}, 120),
        ({"cache_creation": SPLIT}, 100),
        ({"cache_creation_input_tokens": None, "cache_creation": {"ephemeral_1h_input_tokens": 70}}, 70),
        ({"cache_creation_input_tokens": None, "cache_creation": None}, 0),
        ({"cache_creation_input_tokens": 100, "cache_creation": "of another form"}, 100),
        ({"cache_creation": [30, 70]}, 0),
    ],
    ids=["both", "total", "null split", "more than the split", "split", "half a split", "null", "odd", "odd alone"],
)
async def test_what_was_written_to_the_cache_counts_however_it_is_divided(
    http: aiohttp.ClientSession,
    provider: Simulator,
    database: Database,
    alice: AliceKey,
    written: dict[str, Any],
    expected: int,
    stream: bool,
) -> None:
    usage = {"input_tokens": 9, "output_tokens": 1, "cache_read_input_tokens": 8} | written
    whole = events(start(usage=usage), *TEXT, ended(usage={"output_tokens": 21}), STOP)
    message = start(usage=usage | {"output_tokens": 21})["message"]
    provider.script = Script(
        body=whole if stream else json.dumps(message).encode(), content_type=EVENTS if stream else None
    )
    row = await recorded(http, provider, database, alice, stream=stream)
    assert (row.usage, row.estimated) == (Usage(input=9, output=21, cache_write=expected, cache_read=8), False)


# Counts that are missing.


STARTED = {"usage": {"input_tokens": 25, "output_tokens": 1}}
HELD_INPUT = hold_of(ask(stream=True)) - ask()["max_tokens"]


@pytest.mark.parametrize(
    ("first", "last", "expected", "estimated"),
    [
        (STARTED, {"usage": {"output_tokens": 15}}, Usage(input=25, output=15), False),
        ({}, {"usage": {"input_tokens": 25, "output_tokens": 15}}, Usage(input=25, output=15), False),
        ({}, {"usage": {"output_tokens": 33}}, Usage(input=HELD_INPUT, output=33), True),
        (STARTED, {}, Usage(input=25, output=TEXT_TOKENS), True),
        (STARTED, {"usage": None}, Usage(input=25, output=TEXT_TOKENS), True),
        (STARTED, {"usage": {}}, Usage(input=25, output=TEXT_TOKENS), True),
        ({"usage": None}, {"usage": None}, Usage(input=HELD_INPUT, output=TEXT_TOKENS), True),
        ({}, {}, Usage(input=HELD_INPUT, output=TEXT_TOKENS), True),
    ],
    ids=["both", "last", "output alone", "first", "last null", "last empty", "both null", "none"],
)
async def test_a_stream_whose_first_or_last_counts_are_missing_passes_and_is_estimated_where_it_must_be(
    http: aiohttp.ClientSession,
    provider: Simulator,
    database: Database,
    alice: AliceKey,
    first: Event,
    last: Event,
    expected: Usage,
    estimated: bool,
) -> None:
    """Never below what was said, and never one token for a whole text because only the beginning was counted."""
    provider.script = Script(body=events(start(**first), *TEXT, ended(**last), STOP), content_type=EVENTS)
    row = await recorded(http, provider, database, alice, stream=True)
    assert (row.usage, row.estimated) == (expected, estimated)


async def test_a_refusal_is_a_success_that_is_charged_as_reported(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey
) -> None:
    """The model's own, of which the provider says `stop_reason: refusal`."""
    provider.script = Script(content_filter=True, usage=Usage(input=40, output=6))
    row = await recorded(http, provider, database, alice, stream=True)
    assert (row.usage, row.estimated) == (Usage(input=40, output=6), False)


# What nobody knows yet.


RESULTS = ("web_search", "web_fetch", "code_execution", "bash_code_execution", "tool_search", "mcp", "advisor")
BLOCKS: list[Event] = [
    *({"type": f"{name}_tool_result", "tool_use_id": "srvtoolu_1", "content": []} for name in RESULTS),
    *({"type": name, "data": "AAAA"} for name in ("redacted_thinking", "compaction", "container_upload")),
    {"type": "a_block_of_tomorrow", "usage": {"input_tokens": 7_000, "output_tokens": 9_000}},
]
NEWS: list[Event] = [
    {"type": "ping"},
    {"type": "an_event_of_tomorrow", "usage": {"input_tokens": 7_000, "output_tokens": 9_000}},
    {"type": "content_block_delta", "index": 90, "delta": {"type": "a_delta_of_tomorrow", "message_stop": 1}},
]


async def test_blocks_and_events_that_nobody_knows_pass_and_change_no_count(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey
) -> None:
    blocks = [event for index, content in enumerate(BLOCKS) for event in block(content, index=index)]
    whole = events(*NEWS, start(**STARTED), *blocks, *NEWS, *TEXT, ended(usage={"output_tokens": 33}), STOP)
    provider.script = Script(body=whole, content_type=EVENTS)
    row = await recorded(http, provider, database, alice, stream=True)
    assert (row.usage, row.estimated) == (Usage(input=25, output=33), False)


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda content: content["type"])
async def test_a_message_with_any_block_is_counted_by_its_own_usage(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey, kind: Event
) -> None:
    message = start(content=[kind], usage={"input_tokens": 25, "output_tokens": 33}, tomorrow={"usage": 1})
    provider.script = Script(body=json.dumps(message["message"]).encode())
    row = await recorded(http, provider, database, alice, stream=False)
    assert (row.usage, row.estimated) == (Usage(input=25, output=33), False)
