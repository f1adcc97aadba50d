"""API keys: what is minted is recognised, and what is mistyped, cut or made up is not."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import keys
from gateway.core.keys import ApiKey

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
KNOWN = ApiKey("k7f3m2q9x4ab", "0" * keys.SECRET_LENGTH)
hypothesis = settings(deadline=None, max_examples=200)

API_KEYS = st.builds(
    ApiKey,
    st.text("abcdefghjkmnpqrstuvwxyz23456789", min_size=12, max_size=12),
    st.text(BASE62, min_size=43, max_size=43),
)


def test_a_minted_key_has_the_form_that_clients_and_scanners_know() -> None:
    text = keys.mint().text
    assert re.fullmatch(r"sk-ant-om1-[a-z2-9]{12}[0-9A-Za-z]{43}[0-9A-Za-z]{6}", text, re.ASCII)
    assert len(text) == 72


def test_minted_keys_are_all_different_and_use_all_that_they_may() -> None:
    minted = [keys.mint() for _ in range(500)]
    assert len({key.key_id for key in minted}) == len({key.secret for key in minted}) == 500
    assert set("".join(key.key_id for key in minted)) == set("abcdefghjkmnpqrstuvwxyz23456789")
    assert set("".join(key.secret for key in minted)) == set(BASE62)


def test_a_secret_carries_256_bits() -> None:
    assert len(BASE62) ** keys.SECRET_LENGTH >= 2**256


@hypothesis
@given(API_KEYS)
def test_a_key_is_recognised_by_its_text(key: ApiKey) -> None:
    assert keys.parse(key.text) == key


def test_the_text_of_a_key_stays_the_same_for_ever() -> None:
    """Keys that were given out must be recognised by every later version."""
    assert KNOWN.text == "sk-ant-om1-k7f3m2q9x4ab" + "0" * 43 + "1FbwFI"
    assert keys.parse(KNOWN.text) == KNOWN


@hypothesis
@given(API_KEYS, st.integers(0, 71), st.sampled_from(BASE62 + "-_ \n\u00e4\u0660"))
def test_a_key_with_one_wrong_character_is_no_key(key: ApiKey, place: int, wrong: str) -> None:
    text = key.text
    mistyped = text[:place] + wrong + text[place + 1 :]
    assert (keys.parse(mistyped) is None) == (mistyped != text)


@hypothesis
@given(API_KEYS, st.integers(0, 70))
def test_a_key_with_two_characters_swapped_is_no_key(key: ApiKey, place: int) -> None:
    text = key.text
    swapped = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    assert (keys.parse(swapped) is None) == (swapped != text)


@hypothesis
@given(API_KEYS, st.integers(0, 71))
def test_a_key_cut_short_or_with_something_around_it_is_no_key(key: ApiKey, length: int) -> None:
    text = key.text
    around = [f"{text}x", f"x{text}", f"{text}\n", f" {text}", f"{text} ", f"Bearer {text}", text * 2, f'"{text}"']
    for junk in [text[:length], text[72 - length :], *around]:
        assert keys.parse(junk) is None or junk == text


@pytest.mark.parametrize(
    "junk",
    [
        "",
        "sk-ant-om1-",
        "sk-ant-api03-" + "x" * 80,
        "\ud800" * 72,
        "sk-ant-om1-" + "a" * 61,
        "x" * 10**6,
        "\x00" * 72,
    ],
)
def test_junk_is_no_key(junk: str) -> None:
    assert keys.parse(junk) is None


@hypothesis
@given(st.text(max_size=100))
def test_any_text_is_looked_at_without_an_error(text: str) -> None:
    assert keys.parse(text) is None
    assert keys.parse(keys.PREFIX + text) is None


@hypothesis
@given(API_KEYS)
def test_no_showing_of_a_key_has_its_secret(key: ApiKey) -> None:
    for shown in (repr(key), str(key), f"{key}", repr([key]), key.prefix):
        assert key.secret not in shown
        assert key.text not in shown
    assert key.prefix == f"sk-ant-om1-{key.key_id[:4]}…"
