"""A secret never passes, however it is cut; everything else does, and at once."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.withholding import TELLING_BYTES, RepeatsSecret, Withholding

SECRET, OTHER = b"sk-provider-0123456789", b"sk-provider-abcdefghij"
SECRETS = [SECRET, OTHER]


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


near_secrets = st.lists(
    st.one_of(st.binary(max_size=6), st.sampled_from([secret[:size] for secret in SECRETS for size in (3, 9, 21)])),
    max_size=8,
).map(b"".join)


@given(near_secrets, st.lists(st.integers(0, 10_000), max_size=12))
def test_what_holds_no_secret_passes_whole_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    if any(secret in data for secret in SECRETS):
        return
    guard = Withholding(SECRETS)
    assert b"".join(map(guard.feed, pieces(data, cuts))) + guard.rest() == data
    assert guard.rest() == b""


@given(near_secrets, st.sampled_from(SECRETS), near_secrets, st.lists(st.integers(0, 10_000), max_size=12))
def test_of_a_secret_nothing_that_tells_passes_however_it_is_cut(
    before: bytes, secret: bytes, after: bytes, cuts: list[int]
) -> None:
    guard, passed = Withholding(SECRETS), bytearray()
    with pytest.raises(RepeatsSecret):
        passed.extend(byte for piece in pieces(before + secret + after, cuts) for byte in guard.feed(piece))
    assert secret not in passed
    assert len(passed) < len(before) + TELLING_BYTES


def test_only_the_beginning_of_a_secret_waits() -> None:
    guard = Withholding(SECRETS)
    assert guard.feed(b"nothing here") == b"nothing here"
    assert guard.feed(b"and then sk-provider-") == b"and then "
    assert guard.feed(b"x") == b"sk-provider-x"
    assert guard.feed(SECRET[: TELLING_BYTES - 1]) == SECRET[: TELLING_BYTES - 1]
