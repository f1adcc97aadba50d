"""Routing: which upstream and which credential is asked, what rests for how long, and who may be asked next."""

from collections import Counter
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import ModelNotServed
from gateway.core.protocols import Protocol
from gateway.core.rests import MOST_BUSY_MODELS, REFUSED_REST_MS, UNREACHABLE_REST_MS, Candidate, Resting
from gateway.core.routing import (
    BUSY_REST_MS,
    LEAST_BUSY_REST_MS,
    MOST_BUSY_REST_MS,
    MOST_ROUTES,
    Attempts,
    Router,
    Trouble,
)
from gateway.core.upstreams import Access, Timeouts, UpstreamSettings
from gateway.core.waits import read_retry_after

NOW = 1_800_000_000_000
ANTHROPIC, OPENAI = Protocol.ANTHROPIC, Protocol.OPENAI
UNREACHABLE, REFUSED, BUSY, OVERLOADED = Trouble


def anywhere(_upstream: int) -> bool:
    return True


def access(name: str, *models: str, credentials: int = 1, protocol: Protocol = OPENAI) -> Access:
    upstream = UpstreamSettings(
        name=name,
        protocol=protocol,
        url=f"https://{name}.example",
        credentials=("A_KEY",),
        credential_header="authorization",
        models=models,
        timeouts=Timeouts(connect_seconds=1, first_byte_seconds=1, silence_seconds=1),
    )
    return Access(upstream=upstream, credentials=tuple(f"secret-{number}" for number in range(credentials)))


def place(candidate: Candidate) -> tuple[int, int]:
    return candidate.upstream, candidate.credential


def asked(router: Router, model: str = "m", now_ms: int = NOW) -> tuple[int, int]:
    """Whom the next request goes to."""
    attempts = router.attempts(OPENAI, model, now_ms)
    attempts.begin(now_ms)
    return place(attempts.current)


def walk(attempts: Attempts, trouble: Trouble, now_ms: int = NOW) -> list[tuple[int, int]]:
    """Everybody who is asked if all of them have the same trouble."""
    seen = [place(attempts.current)]
    attempts.note(trouble, now_ms)
    while attempts.go_on(trouble, now_ms, anywhere):
        seen.append(place(attempts.current))
        attempts.note(trouble, now_ms)
    return seen


@pytest.mark.parametrize(
    ("protocol", "model", "serving"),
    [
        (OPENAI, "gpt-5", (0, 3)),
        (OPENAI, "llama-4", (1, 3)),
        (OPENAI, "llama-4-mini", (0, 1, 3)),
        (OPENAI, "GPT-5", (3,)),
        (OPENAI, "meta/llama-4", (3,)),
        (OPENAI, "gpt-5\n", (0, 3)),
        (ANTHROPIC, "gpt-5", ()),
        (ANTHROPIC, "claude-x", (2,)),
    ],
)
def test_a_model_is_served_by_the_upstreams_of_its_protocol_in_their_order(
    protocol: Protocol, model: str, serving: tuple[int, ...]
) -> None:
    router = Router(
        [
            access("first", "gpt-*", "*-mini"),
            access("second", "llama-*"),
            access("third", "claude-?", protocol=ANTHROPIC),
            access("rest"),
        ]
    )
    assert router.serving(protocol, model) == serving
    if serving:
        assert router.attempts(protocol, model, NOW).current.upstream == serving[0]


@given(
    globs=st.lists(st.text("ab*?[]!-", min_size=1, max_size=6), min_size=1, max_size=4),
    model=st.text("ab-]!", max_size=6),
)
def test_a_glob_means_what_it_means_for_keys(globs: list[str], model: str) -> None:
    served = bool(Router([access("one", *globs)]).serving(OPENAI, model))
    assert served is any(fnmatchcase(model, glob) for glob in globs)


def test_a_model_that_nobody_serves_is_not_found() -> None:
    router = Router([access("one", "gpt-*")])
    with pytest.raises(ModelNotServed, match=r"^model: ") as unknown:
        router.attempts(OPENAI, "claude-<script>", NOW)
    assert (unknown.value.status, unknown.value.kind) == (404, "not_found_error")
    assert "script" not in unknown.value.message
    with pytest.raises(ModelNotServed, match="speaks this protocol"):
        router.attempts(ANTHROPIC, "gpt-5", NOW)
    assert (router.speaks(OPENAI), router.speaks(ANTHROPIC)) == (True, False)


def test_credentials_are_used_in_turn_and_further_upstreams_come_after_them() -> None:
    router = Router([access("team", credentials=3), access("spare", credentials=2)])
    later = [NOW + number * BUSY_REST_MS for number in range(3)]
    assert [walk(router.attempts(OPENAI, "m", now_ms), BUSY, now_ms) for now_ms in later] == [
        [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)],
        [(0, 1), (0, 2), (0, 0), (1, 1), (1, 0)],
        [(0, 2), (0, 0), (0, 1), (1, 0), (1, 1)],
    ]


def test_every_model_has_turns_of_its_own() -> None:
    router = Router([access("team", credentials=2)])
    turns = [(model, asked(router, model)[1]) for _ in range(10) for model in ("a", "b")]
    assert set(Counter(turns).values()) == {5}


def test_those_that_are_awake_share_the_turns_of_one_that_rests() -> None:
    router = Router([access("team", credentials=3)])
    router.attempts(OPENAI, "m", NOW).note(BUSY, NOW, 30_000)
    assert Counter(asked(router) for _ in range(10)) == {(0, 1): 5, (0, 2): 5}
    assert Counter(asked(router, "other") for _ in range(9)) == {(0, 0): 3, (0, 1): 3, (0, 2): 3}
    assert Counter(asked(router, now_ms=NOW + 30_000) for _ in range(9)) == {(0, 0): 3, (0, 1): 3, (0, 2): 3}


def test_a_refused_credential_rests_for_every_model_and_is_told_once_for_each_rest() -> None:
    router = Router([access("team", credentials=2)])
    beside = [router.attempts(OPENAI, "m", NOW) for _ in range(3)]
    assert [attempts.note(REFUSED, NOW + number) for number, attempts in enumerate(beside)] == [True, True, False]
    router = Router([access("team", credentials=2)])
    router.attempts(OPENAI, "m", NOW).note(REFUSED, NOW)
    for model in ("m", "n"):
        assert {asked(router, model, NOW + REFUSED_REST_MS - 1) for _ in range(4)} == {(0, 1)}
        assert {asked(router, model, NOW + REFUSED_REST_MS) for _ in range(4)} == {(0, 0), (0, 1)}


def test_the_operator_is_told_again_after_the_rest() -> None:
    router = Router([access("lone")])
    told = [
        router.attempts(OPENAI, "m", NOW + after).note(REFUSED, NOW + after)
        for after in (0, 1, REFUSED_REST_MS - 1, REFUSED_REST_MS, REFUSED_REST_MS + 1)
    ]
    assert told == [True, False, False, True, False]


@pytest.mark.parametrize("trouble", [BUSY, OVERLOADED])
@pytest.mark.parametrize(
    ("asked_for", "rests_ms"),
    [
        (None, BUSY_REST_MS),
        (30_000, 30_000),
        (0, LEAST_BUSY_REST_MS),
        (10**15, MOST_BUSY_REST_MS),
        (MOST_BUSY_REST_MS, MOST_BUSY_REST_MS),
    ],
)
def test_a_busy_credential_rests_for_that_model_as_long_as_it_was_asked_to(
    trouble: Trouble, asked_for: int | None, rests_ms: int
) -> None:
    router = Router([access("team"), access("spare")])
    assert not router.attempts(OPENAI, "m", NOW).note(trouble, NOW, asked_for)
    assert asked(router, "m", NOW + rests_ms - 1) == (1, 0)
    assert asked(router, "n", NOW) == (0, 0)
    assert asked(router, "m", NOW + rests_ms) == (0, 0)


def test_each_rest_of_a_credential_has_an_end_of_its_own() -> None:
    router = Router([access("team"), access("spare")])
    for model, rest_ms in (("m", 30_000), ("n", 40_000), ("o", 20_000)):
        router.attempts(OPENAI, model, NOW).note(BUSY, NOW, rest_ms)
    for model, rest_ms in (("m", 30_000), ("n", 40_000), ("o", 20_000)):
        assert asked(router, model, NOW + rest_ms - 1) == (1, 0)
        assert asked(router, model, NOW + rest_ms) == (0, 0)


@pytest.mark.parametrize("trouble", list(Trouble))
def test_a_lone_credential_never_rests(trouble: Trouble) -> None:
    router = Router([access("lone"), access("other", "gpt-*"), access("foreign", protocol=ANTHROPIC)])
    attempts = router.attempts(OPENAI, "m", NOW)
    attempts.note(trouble, NOW)
    assert attempts.is_lone
    assert not attempts.go_on(trouble, NOW, anywhere)
    assert asked(router) == (0, 0)
    assert [resting.credentials for resting in router.resting(NOW)] == [trouble in (UNREACHABLE, REFUSED), 0, 0]


def test_if_all_rest_the_one_that_comes_back_first_is_asked_alone() -> None:
    router = Router([access("team", credentials=2), access("spare")])
    for rest_ms in (30_000, 20_000, 40_000):
        router.attempts(OPENAI, "m", NOW).note(BUSY, NOW, rest_ms)
    attempts = router.attempts(OPENAI, "m", NOW)
    assert place(attempts.current) == (0, 1)
    attempts.note(BUSY, NOW, 35_000)
    assert not attempts.go_on(BUSY, NOW, anywhere)
    assert asked(router) == (0, 0)


@pytest.mark.parametrize(
    ("trouble", "walked"),
    [
        (UNREACHABLE, [(0, 0), (1, 0), (2, 0)]),
        (REFUSED, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]),
        (BUSY, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]),
        (OVERLOADED, [(0, 0)]),
    ],
)
def test_a_request_goes_on_only_where_it_was_certainly_not_processed(
    trouble: Trouble, walked: list[tuple[int, int]]
) -> None:
    router = Router([access("a", credentials=2), access("b", credentials=2), access("c"), access("d", "gpt-*")])
    assert walk(router.attempts(OPENAI, "m", NOW), trouble) == walked


def test_one_that_began_to_rest_meanwhile_is_passed_over() -> None:
    router = Router([access("a"), access("b"), access("c")])
    first, second = router.attempts(OPENAI, "m", NOW), router.attempts(OPENAI, "m", NOW)
    second.note(BUSY, NOW)
    assert second.go_on(BUSY, NOW, anywhere)
    second.note(REFUSED, NOW)
    first.note(BUSY, NOW)
    assert not first.is_lone
    assert first.go_on(BUSY, NOW, anywhere)
    assert place(first.current) == (2, 0)
    assert not first.go_on(BUSY, NOW, anywhere)


@given(
    credentials=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    requests=st.lists(
        st.tuples(
            st.sampled_from("mn"),
            st.integers(0, 90_000),
            st.lists(st.tuples(st.sampled_from(Trouble), st.none() | st.integers(-5, 10**7)), max_size=15),
        ),
        max_size=25,
    ),
)
def test_whatever_happens_somebody_is_asked_and_nobody_twice(
    credentials: list[int], requests: list[tuple[str, int, list[tuple[Trouble, int | None]]]]
) -> None:
    router = Router([access(f"u{number}", credentials=count) for number, count in enumerate(credentials)])
    now_ms = NOW
    for model, passed_ms, troubles in requests:
        now_ms += passed_ms
        attempts = router.attempts(OPENAI, model, now_ms)
        seen = {place(attempts.current)}
        for trouble, rest_ms in troubles:
            attempts.note(trouble, now_ms, rest_ms)
            before = attempts.current
            if not attempts.go_on(trouble, now_ms, anywhere):
                assert attempts.current is before
                break
            assert trouble is not OVERLOADED
            assert place(attempts.current) not in seen
            assert attempts.current.rests_until(model) <= now_ms
            seen.add(place(attempts.current))
        for resting, count in zip(router.resting(now_ms), credentials, strict=True):
            assert 0 <= resting.credentials <= count
            assert (resting.credentials > 0) == (resting.seconds > 0)
            assert resting.seconds * 1_000 <= MOST_BUSY_REST_MS


def test_what_rests_is_told_in_figures_for_each_upstream() -> None:
    router = Router([access("team", credentials=3), access("spare")])
    nothing = Resting(upstream="spare", credentials=0, seconds=0)
    assert router.resting(NOW) == (Resting(upstream="team", credentials=0, seconds=0), nothing)
    router.attempts(OPENAI, "the-model", NOW).note(REFUSED, NOW)
    for number in range(3):
        router.attempts(OPENAI, f"model-{number}", NOW).note(BUSY, NOW, 89_001)
    assert router.resting(NOW) == (Resting(upstream="team", credentials=3, seconds=90), nothing)
    assert router.resting(NOW + 60_000) == (Resting(upstream="team", credentials=2, seconds=30), nothing)
    assert router.resting(NOW + 89_001) == (Resting(upstream="team", credentials=0, seconds=0), nothing)
    router.attempts(OPENAI, "m", NOW + 90_000).note(UNREACHABLE, NOW + 90_000)
    assert router.resting(NOW + 90_000)[0] == Resting(upstream="team", credentials=3, seconds=10)


# An upstream that cannot be reached.


def test_an_upstream_that_cannot_be_reached_rests_for_every_model_that_another_serves() -> None:
    router = Router([access("dead", credentials=2), access("spare", "m*")])
    router.attempts(OPENAI, "m", NOW).note(UNREACHABLE, NOW)
    late = NOW + UNREACHABLE_REST_MS - 1
    for model in ("m", "m2"):
        assert {asked(router, model, late) for _ in range(4)} == {(1, 0)}
    assert {asked(router, "alone", late) for _ in range(4)} == {(0, 0), (0, 1)}


def test_after_the_rest_one_request_tries_for_all() -> None:
    router = Router([access("dead", credentials=2), access("spare")])
    router.attempts(OPENAI, "m", NOW).note(UNREACHABLE, NOW)
    later = NOW + UNREACHABLE_REST_MS
    router.attempts(OPENAI, "m", later)  # refused by a limit: it was never sent
    trying = router.attempts(OPENAI, "m", later)
    trying.begin(later)
    assert trying.current.upstream == 0
    assert {asked(router, model, later + UNREACHABLE_REST_MS - 1) for model in "mno"} == {(1, 0)}
    trying.note(None, later + 500)
    assert {asked(router, "m", later + 500) for _ in range(4)} == {(0, 0), (0, 1)}


def test_if_nothing_is_heard_of_the_one_that_tried_another_one_tries() -> None:
    router = Router([access("dead"), access("spare")])
    router.attempts(OPENAI, "m", NOW).note(UNREACHABLE, NOW)
    for rests in (1, 2, 3):
        at_ms = NOW + rests * UNREACHABLE_REST_MS
        assert [asked(router, now_ms=at_ms) for _ in range(3)] == [(0, 0), (1, 0), (1, 0)]


@pytest.mark.parametrize("trouble", [REFUSED, BUSY, OVERLOADED, None])
def test_whatever_an_upstream_answers_it_can_be_reached(trouble: Trouble | None) -> None:
    router = Router([access("team", credentials=2), access("spare")])
    beside = router.attempts(OPENAI, "m", NOW)
    router.attempts(OPENAI, "m", NOW).note(UNREACHABLE, NOW)
    assert asked(router) == (1, 0)
    beside.note(trouble, NOW + 1)
    assert asked(router, now_ms=NOW + 1)[0] == 0


def test_the_operator_is_told_once_for_each_rest_of_an_upstream() -> None:
    router = Router([access("dead"), access("spare")])
    beside = [router.attempts(OPENAI, "m", NOW) for _ in range(3)]
    assert [attempts.note(UNREACHABLE, NOW + number) for number, attempts in enumerate(beside)] == [1, 0, 0]
    for rests in (1, 2):
        at_ms = NOW + rests * UNREACHABLE_REST_MS
        trying, other = router.attempts(OPENAI, "m", at_ms), beside[0]
        assert [trying.note(UNREACHABLE, at_ms), other.note(UNREACHABLE, at_ms)] == [True, False]
    lone = Router([access("lone")])
    told = [
        lone.attempts(OPENAI, "m", NOW + after).note(UNREACHABLE, NOW + after) for after in (0, 1, 9_999, 10_000)
    ]
    assert told == [True, False, False, True]


def test_if_nobody_can_be_reached_everybody_is_tried_again() -> None:
    router = Router([access("a", credentials=2), access("b"), access("c")])
    for now_ms in (NOW, NOW + 1):
        assert walk(router.attempts(OPENAI, "m", now_ms), UNREACHABLE, now_ms) == [(0, 0), (1, 0), (2, 0)]


def test_one_that_is_busy_is_asked_rather_than_one_that_cannot_be_reached() -> None:
    """Its answer is truer, and costs no time."""
    router = Router([access("dead"), access("busy")])
    first = router.attempts(OPENAI, "m", NOW)
    first.note(UNREACHABLE, NOW)
    assert first.go_on(UNREACHABLE, NOW, anywhere)
    first.note(BUSY, NOW, 60_000)
    again = router.attempts(OPENAI, "m", NOW + 1)
    assert place(again.current) == (1, 0)
    again.note(BUSY, NOW + 1, 60_000)
    assert not again.go_on(BUSY, NOW + 1, anywhere)


def test_what_is_remembered_of_the_names_of_clients_has_a_bound() -> None:
    router = Router([access("team"), access("spare")])
    for number in range(MOST_ROUTES + 10):
        router.attempts(OPENAI, f"m{number}", NOW).note(BUSY, NOW, 1_000 + number)
    busy = router._candidates[0][0]
    assert len(busy._busy_until_ms) == MOST_BUSY_MODELS
    assert len(router._routes) <= MOST_ROUTES
    assert asked(router, f"m{MOST_ROUTES + 9}") == (1, 0)
    assert asked(router, "m0") == (0, 0)
    later = NOW + MOST_BUSY_REST_MS
    router.attempts(OPENAI, "one", later).note(BUSY, later)
    assert len(busy._busy_until_ms) == 1


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        (401, REFUSED),
        (429, BUSY),
        (529, OVERLOADED),
        *((status, None) for status in (0, 200, 400, 403, 404, 408, 500, 502, 503, 504)),
    ],
)
def test_only_some_answers_tell_of_the_credential(status: int, trouble: Trouble | None) -> None:
    assert Trouble.of(status) is trouble


@pytest.mark.parametrize(
    ("headers", "wait_ms"),
    [
        ([("retry-after", "7")], 7_000),
        ([("Retry-After", " 1.5 ")], 1_500),
        ([("retry-after", "7"), ("retry-after-ms", "1200.4")], 1_201),
        ([("retry-after", "7"), ("retry-after-ms", "soon")], 7_000),
        ([("retry-after", "Fri, 15 Jan 2027 08:00:30 GMT")], 30_000),
        ([("retry-after", "Fri, 15 Jan 2027 08:00:30 -0000")], 30_000),
        ([("retry-after", "Fri, 15 Jan 2027 07:00:00 GMT")], 0),
        ([("retry-after", "0")], 0),
        *(([("retry-after", text)], None) for text in ("", "soon", "-5", "nan", "inf", "1e9", "٣", "1" * 400)),
        ([("retry-after", "Fri, 99 Jan 99999 08:00:30 GMT")], None),
        ([("x-retry-after", "7")], None),
        ([], None),
    ],
)
def test_a_wait_is_read_as_sdks_read_it(headers: list[tuple[str, str]], wait_ms: int | None) -> None:
    assert read_retry_after(headers, NOW) == wait_ms


@given(st.text() | st.from_regex(r"\w{3}, \d+ \w{3} \d+ \d+:\d+:\d+ [-+ \w]*"))
def test_no_wait_that_an_upstream_writes_is_an_error(text: str) -> None:
    wait_ms = read_retry_after([("retry-after", text), ("retry-after-ms", text)], NOW)
    assert wait_ms is None or wait_ms >= 0


def test_who_may_not_be_gone_to_is_passed_over() -> None:
    router = Router([access("a", "m"), access("b", "m"), access("c", "m")])
    attempts = router.attempts(OPENAI, "m", NOW)
    assert attempts.go_on(BUSY, NOW, lambda place: place != 1)
    assert attempts.current.upstream == 2
    assert not attempts.go_on(BUSY, NOW, lambda _place: False)
    assert attempts.current.upstream == 2
