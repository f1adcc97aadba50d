"""What each command on keys does: values in, an `Answer` out. The command line itself is in cli.py."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import aiosqlite

from gateway import admin_texts, keystore, reports
from gateway.admin_texts import KeyView
from gateway.core import keys, tables
from gateway.core.amounts import show_time
from gateway.core.keys import ApiKey
from gateway.core.records import Key, KeyRow, Secret
from gateway.erasure import ErasureReport, erase_key, finish_pending_erasure
from gateway.hashing import hash_secret
from gateway.history import read_status
from gateway.keystore import KeyGone

MAX_NAME_LENGTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command says."""

    value: object
    """For `--json`."""
    text: str = ""
    """The same for people, to stdout; '' = `talk` says it all."""
    talk: tuple[str, ...] = ()
    """What is no data, line by line, to stderr."""
    is_failure: bool = False


class BadName(Exception):
    """A name that would be hard to read or to type."""

    def __init__(self) -> None:
        super().__init__(
            f"a name has 1 to {MAX_NAME_LENGTH} printable characters and no space at its ends: alice-ci"
        )


class NoSuchKey(Exception):
    """No key is called so."""

    def __init__(self, text: str, names: Collection[str]) -> None:
        super().__init__(f"no such key: {text}. {_suggestion(text, names)}")


class AmbiguousKey(Exception):
    """Several keys are called so; or the text is not fit to name a key."""


async def find_key(connection: aiosqlite.Connection, text: str) -> Key:
    """The one key that `text` names. Raises `NoSuchKey` and `AmbiguousKey`."""
    if keys.parse(text):
        raise AmbiguousKey(
            "that is a whole API key; call it by its name or its id, so that its secret stays out of your shell"
        )
    found = await keystore.find_keys(connection, text)
    if not found:
        directory = await keystore.read_directory(connection)
        raise NoSuchKey(text, [key.name for key in directory.keys.values()])
    if len(found) > 1:
        raise AmbiguousKey(f"{text} fits several keys: {', '.join(key.name for key in found)}")
    return found[0]


async def create_key(
    connection: aiosqlite.Connection, name: str, limits: Mapping[str, Any], now_ms: int
) -> tuple[ApiKey, Answer]:
    """A new key with some fields of `Key` set. Returns it too: nobody can read it again."""
    _require_good_name(name)
    api_key = keys.mint()
    key = Key(row=keystore.new_key_row(), name=name, created=now_ms, **limits)
    await keystore.add_key(connection, key, _secret(api_key, key.row, now_ms))
    talk = (f"Created {name}. This is the only time that the key is shown.", *admin_texts.advice(key))
    return api_key, _handing_over(api_key, key, talk)


async def list_keys(connection: aiosqlite.Connection, now_ms: int, width: int | None) -> Answer:
    """A line for each key."""
    directory = await keystore.read_directory(connection)
    views = [await _view(connection, key, now_ms) for key in directory.keys.values()]
    if not views:
        return Answer(value=[], talk=("There are no keys yet; `key create NAME` makes one.",))
    rows = [admin_texts.list_row(view) for view in views]
    return Answer(
        value=[admin_texts.as_json(view) for view in views],
        text=tables.render(admin_texts.LIST_COLUMNS, rows, width=width),
    )


async def show_key(connection: aiosqlite.Connection, text: str, now_ms: int) -> Answer:
    """All about one key."""
    view = await _view(connection, await find_key(connection, text), now_ms)
    return Answer(value=admin_texts.as_json(view), text=admin_texts.show(view))


async def edit_key(connection: aiosqlite.Connection, text: str, changes: Mapping[str, Any], now_ms: int) -> Answer:
    """Some fields of `Key` get new values."""
    key = await find_key(connection, text)
    before, after = await keystore.edit_key(connection, key.row, changes)
    lines = admin_texts.differences(before, after)
    return Answer(
        value=admin_texts.as_json(await _view(connection, after, now_ms)),
        text="\n".join(lines),
        talk=tuple(admin_texts.advice(after)) if lines else (f"{key.name} is like that already.",),
    )


async def rename_key(connection: aiosqlite.Connection, text: str, name: str, now_ms: int) -> Answer:
    """Another name for the same key; clients notice nothing."""
    _require_good_name(name)
    key = await find_key(connection, text)
    before, after = await keystore.edit_key(connection, key.row, {"name": name})
    return Answer(
        value=admin_texts.as_json(await _view(connection, after, now_ms)),
        talk=(f"{before.name} is now called {after.name}.",),
    )


async def set_disabled(connection: aiosqlite.Connection, text: str, disabled: bool, now_ms: int) -> Answer:
    """A disabled key is refused until it is enabled again."""
    key = await find_key(connection, text)
    _, after = await keystore.edit_key(connection, key.row, {"disabled": disabled})
    return Answer(
        value=admin_texts.as_json(await _view(connection, after, now_ms)),
        talk=(f"{key.name} is {'disabled' if disabled else 'enabled'}.",),
    )


async def rotate_key(
    connection: aiosqlite.Connection, text: str, grace_ms: int, now_ms: int
) -> tuple[ApiKey, Answer]:
    """A new secret for a key; its name, limits and usage stay."""
    key = await find_key(connection, text)
    api_key = keys.mint()
    await keystore.rotate(connection, _secret(api_key, key.row, now_ms), grace_ms=grace_ms)
    old = f"works until {show_time(now_ms + grace_ms)}" if grace_ms else "no longer works"
    talk = (f"{key.name} has a new key, shown only now. The old one {old}.",)
    return api_key, _handing_over(api_key, key, talk)


async def delete_key(connection: aiosqlite.Connection, path: Path, key: Key, now_ms: int) -> Answer:
    """Erase a key and all its rows."""
    report = await erase_key(connection, path, key, now_ms)
    return Answer(value=_erasure_json(key, report), talk=_erasure_lines(key, report))


async def finish_erasure(connection: aiosqlite.Connection, path: Path) -> tuple[str, ...]:
    """Finish what an interrupted `key delete` left; what there is to say about it."""
    finished = await finish_pending_erasure(connection, path)
    return ("An erasure that had been interrupted is finished now.",) if finished else ()


def _suggestion(text: str, names: Collection[str]) -> str:
    """What to do when no key is called `text`: the names that are nearly that, whatever their case."""
    if not names:
        return "There are no keys yet; `key create NAME` makes one."
    folded: dict[str, list[str]] = {}
    for name in names:
        folded.setdefault(name.casefold(), []).append(name)
    close = [name for match in get_close_matches(text.casefold(), folded) for name in folded[match]]
    return f"Did you mean {' or '.join(close)}?" if close else "`key list` shows them all."


def _require_good_name(name: str) -> None:
    if not (0 < len(name) <= MAX_NAME_LENGTH and name.isprintable() and name == name.strip()):
        raise BadName


def _secret(api_key: ApiKey, row: KeyRow, now_ms: int) -> Secret:
    return Secret(
        key=row,
        key_id=api_key.key_id,
        prefix=api_key.prefix,
        hash=hash_secret(api_key.secret),
        created=now_ms,
    )


async def _view(connection: aiosqlite.Connection, key: Key, now_ms: int) -> KeyView:
    record = await reports.read_record(connection, key.row)
    if record is None:
        raise KeyGone
    limits = await read_status(connection, key, now_ms)
    return KeyView(key=key, record=record, limits=limits, now_ms=now_ms)


def _handing_over(api_key: ApiKey, key: Key, talk: tuple[str, ...]) -> Answer:
    value = {"key": api_key.text, "id": key.row, "name": key.name, "prefix": api_key.prefix}
    return Answer(value=value, text=api_key.text, talk=talk)


def _erasure_json(key: Key, report: ErasureReport) -> dict[str, object]:
    return {
        "id": key.row,
        "name": key.name,
        "requests": report.requests,
        "searched_bytes": sum(file.searched_bytes for file in report.files),
        "hits": sum(file.hits for file in report.files),
        "seconds": round(report.seconds, 3),
        "longest_step_seconds": round(report.longest_step_seconds, 3),
    }


def _erasure_lines(key: Key, report: ErasureReport) -> tuple[str, ...]:
    searched = ", ".join(f"{file.name} ({file.searched_bytes:,} bytes)" for file in report.files)
    hits = sum(file.hits for file in report.files)
    sought = "ids, hashes and name" if report.name_searched else "ids and hashes"
    return (
        f"Erased {key.name} and its {report.requests:,} requests.",
        f"Verified: searched {searched} for its {sought}: {hits} hits.",
        f"It took {report.seconds:.2f} s; a server's commits waited {report.longest_step_seconds:.2f} s at most.",
        "Backups made before still hold it.",
    )
