"""Words that nobody says by chance: one for each place in which a client or a provider can put something.

    canaries = Canaries()
    ask(system=canaries("system"))              # the same word for the same place, another one in each run
    search = Search(canaries.mark)
    search.files(folder)
    assert search.hits == []

The search finds a word in any letter case, and as the codes that carry data write it: base64, hex, percent signs,
JSON's escapes, UTF-16.
"""

import json
import os
import secrets
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.simulator import Script, redirect
from gateway.simulator.answers import JSON_TYPE, SSE_TYPE, message_answer
from gateway.simulator.scripts import Ask, ChatAsk, EmbeddingsAsk, ResponseAsk
from tests.harness import MODEL, ask

CONTEXT_BYTES = 60


class Canaries:
    """The words of one run. All of them end in the same mark, so that whoever finds the mark finds them all."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)
        self.words: dict[str, str] = {}
        self.address = ".".join(["127", *(str(100 + secrets.randbelow(150)) for _ in range(3))])
        """Of this machine, for a client to come from."""

    def __call__(self, place: str) -> str:
        return self.words.setdefault(place, f"canary{''.join(filter(str.isalnum, place)).lower()}{self.mark}")


def spellings(word: str) -> dict[str, bytes]:
    """How a word may stand in a file, without regard to the case of letters."""
    data = word.lower().encode()
    return {
        "text": data,
        "UTF-16": data.decode().encode("utf-16-le"),
        "percent signs": "".join(f"%{byte:02x}" for byte in data).encode(),
        "JSON's escapes": "".join(f"\\u{byte:04x}" for byte in data).encode(),
        "hex": data.hex().encode(),
    }


def base64_spellings(word: str) -> Iterator[bytes]:
    """Its base64 after 0, 1 or 2 other bytes, without what depends on its neighbours."""
    for before in range(3):
        bits = (before + len(word)) * 8
        yield b64encode(bytes(before) + word.encode())[-(-before * 8 // 6) : bits // 6]


class Search:
    """What was searched for some words, and what was found."""

    def __init__(self, *words: str) -> None:
        self.hits: list[str] = []
        self.searched: list[str] = []
        self._words = words

    def __str__(self) -> str:
        return f"hits {len(self.hits)} in {len(self.searched):,} files and outputs"

    def look(self, name: str, data: bytes) -> None:
        self.searched.append(name)
        lower = data.lower()
        for word in self._words:
            for spelling, pattern in spellings(word).items():
                self._note(name, spelling, lower, pattern)
            for pattern in base64_spellings(word):
                self._note(name, "base64", data, pattern)

    def files(self, folder: Path, since: float = 0) -> None:
        """Everything below `folder` that was changed since then; names count as well."""
        for root, folders, files in os.walk(folder):
            names = [Path(root, name) for name in (*folders, *files)]
            for path in (path for path in names if changed_since(path, since)):
                self.look(str(path), str(path).encode() + b"\n" + content(path))

    def _note(self, name: str, spelling: str, data: bytes, pattern: bytes) -> None:
        if (place := data.find(pattern)) >= 0:
            found = data[max(0, place - CONTEXT_BYTES) : place + CONTEXT_BYTES]
            self.hits.append(f"{name}: as {spelling}: {found!r}")


def changed_since(path: Path, since: float) -> bool:
    """Others use the folders for temporary files too: what is gone by now is nobody's trace."""
    try:
        return path.lstat().st_ctime >= since
    except FileNotFoundError:
        return False


def content(path: Path) -> bytes:
    """Of a link its target; of what is neither that nor a file, nothing."""
    try:
        if path.is_symlink():
            return os.fsencode(path.readlink())
        return path.read_bytes() if path.is_file() else b""
    except FileNotFoundError:
        return b""


# What a client says. Each place has its own word.


OPENAI_FIELDS = ("instructions", "user", "safety_identifier", "prompt_cache_key", "previous_response_id")


def full_body(canaries: Canaries, **fields: Any) -> dict[str, Any]:
    """A request with a word in every field that takes a text: in the fields of all endpoints at once."""
    picture = b64encode(b"\x89PNG" + canaries("image").encode()).decode()
    file = b64encode(canaries("file").encode()).decode()
    source = {"type": "base64", "media_type": "image/png", "data": picture}
    document = {"type": "base64", "media_type": "application/pdf", "data": file}
    question = [
        {"type": "text", "text": f'{canaries("prompt")} "é" \\ \u2028'},
        {"type": "image", "source": source},
        {"type": "document", "source": document, "title": f"{canaries('file name')}.pdf"},
    ]
    parts = [
        {"type": "input_text", "text": canaries("input")},
        {"type": "input_image", "image_url": f"data:image/png;base64,{picture}"},
        {"type": "input_file", "filename": f"{canaries('file name')}.pdf", "file_data": file},
        {"type": "image_url", "image_url": {"url": f"https://{canaries('picture elsewhere')}.example/"}},
        {"type": "input_audio", "input_audio": {"data": file, "format": "wav"}},
    ]
    call = {"type": "tool_use", "id": "toolu_1", "name": "read", "input": {"path": canaries("tool input")}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": canaries("tool result")}
    return (
        ask(
            system=canaries("system"),
            messages=[
                {"role": "user", "content": question},
                {"role": "assistant", "content": [call]},
                {"role": "user", "content": [result]},
            ],
            tools=[
                {"name": "read", "description": canaries("tool description"), "input_schema": {"type": "object"}}
            ],
            metadata={"user_id": canaries("user id")},
            stop_sequences=[canaries("stop sequence")],
            container=canaries("container"),
            input=[{"role": "user", "content": parts}],
            **{name: canaries(name) for name in OPENAI_FIELDS},
            **{canaries("name of a field"): 1},
        )
        | fields
    )


FORWARDED = (
    "user-agent",
    "anthropic-beta",
    "idempotency-key",
    "x-stainless-os",
    "x-claude-code-session-id",
    "x-app",
    "openai-beta",
    "originator",
    "session-id",
    "thread-id",
    "x-codex-turn-metadata",
)
PERSONAL = (
    *("cookie", "referer", "from", "x-forwarded-for", "forwarded", "accept-language", "origin", "traceparent"),
    *("openai-organization", "openai-project"),
)
WITHHELD = (*(f"header {name}" for name in PERSONAL), "mail", "name of a header", "name in a query", "value")
"""Places whose words no provider may see."""


def full_headers(canaries: Canaries) -> dict[str, str]:
    """Headers that cross, headers that tell of a person and do not, and one that has a word for its name."""
    forwarded = {name: canaries(f"header {name}") for name in FORWARDED}
    personal = {name: canaries(f"header {name}") for name in PERSONAL}
    personal |= {"cookie": f"id={canaries('header cookie')}", "from": f"{canaries('mail')}@example.org"}
    return forwarded | personal | {f"x-{canaries('name of a header')}": "1"}


def bad_bodies(canaries: Canaries) -> list[bytes]:
    """What is no request, each with a word where it is bad."""
    word = canaries("bad body").encode()
    texts = [
        *(word, b"[%b]" % word, b'{"%b' % word, b'{"model": "%b", "max_tokens": 5' % word, b'"%b"' % word, b""),
        *(b'{"model": "%b\xff", "max_tokens": 5}' % word, b'\xef\xbb\xbf{"model": "%b"}' % word),
        *(b'{"model": 5, "%b": 1}' % word, b'{"model": "%b", "max_tokens": "%b"}' % (word, word)),
        *(b'{"model": "%b", "model": "x", "max_tokens": 5}' % word, b'{"%b": 1, "%b": 2}' % (word, word)),
        *(b'{"model": "%b", "max_tokens": 5, "stream": "%b"}' % (word, word), b'{"model": "%b\\ud800"}' % word),
        b'{"model": "%b", "max_tokens": %d}' % (word, 10**400),
        b'{"model": "%b", "max_tokens": NaN}' % word,
        b'{"messages": ' + b"[" * 5_000 + word + b"]" * 5_000 + b"}",
        b'{"model": "x", "max_tokens": 5, "messages": [' + b'{"%b":' % word * 2_000 + b"1" + b"}" * 2_000 + b"]}",
    ]
    return [*texts, texts[3].decode().encode("utf-16"), json.dumps(full_body(canaries)).encode()[:-9]]


def malformed(canaries: Canaries, key: str) -> list[bytes]:
    """Forty requests that are not HTTP, or not quite, or not for this server; each with words in what is wrong."""
    body = json.dumps(full_body(canaries)).encode()
    word = canaries("malformed").encode()
    line, host, length = b"POST /v1/messages HTTP/1.1\r\n", b"host: x\r\n", b"content-length: %d\r\n" % len(body)
    usual = host + b"x-api-key: %b\r\ncontent-type: application/json\r\n" % key.encode()
    chunked = usual + b"transfer-encoding: chunked\r\n"
    lines = [
        *(
            b"%b\r\n\r\n" % word,
            b"%b %b\r\n\r\n" % (word, word),
            b"\x16\x03\x01\x02%b\r\n\r\n" % word,
            b"\0%b" % word,
        ),
        *(b"POST /%b HTTP/9.9\r\n\r\n" % word, b"POST /%b\r\n\r\n" % word, b"POST  /%b HTTP/1.1\r\n\r\n" % word),
        *(b"%b / HTTP/1.1\r\n%b\r\n" % (word, host), b"GET /\xff%b HTTP/1.1\r\n%b\r\n" % (word, host)),
        b"POST http://%b.example/v1/messages HTTP/1.1\r\n%b\r\n" % (word, usual),
        b"CONNECT %b.example:443 HTTP/1.1\r\n%b\r\n" % (word, host),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n%b" % word,
        b"GET /%b%b HTTP/1.1\r\n%b\r\n" % (word, b"x" * 40_000, host),
        b"POST /v1/messages?%%%b HTTP/1.1\r\n%b\r\n" % (word, usual),
    ]
    headers = [
        *(b"%b: \0%b\r\n" % (word, word), b"%b \r\n" % word, b" %b: 1\r\n" % word, b"x y: %b\r\n" % word),
        *(b"x: 1\r\n %b\r\n" % word, b"%b : 1\r\n" % word, b"x: %b\ny: 1\r\n" % word, b"x: %b\ry: 1\r\n" % word),
        *(b": %b\r\n" % word, b"x-%b\xff: \xff%b\r\n" % (word, word), b"host: %b\r\nhost: %b\r\n" % (word, word)),
        *(b"x: %b\r\n" % (word * 3_000), b"x: %b\r\n" % word * 200, b"content-length: %b\r\n" % word),
        *(b"content-length: -1%b\r\n" % word, b"content-length: 5\r\ncontent-length: 6%b\r\n" % word),
        *(b"transfer-encoding: %b\r\n" % word, b"upgrade: %b\r\nconnection: upgrade\r\n" % word),
        *(b"expect: %b\r\n" % word, b"content-type: %b\r\n" % word, b"content-encoding: %b\r\n" % word),
    ]
    bodies = [
        line + chunked + b"\r\n%b\r\n" % word,
        line + chunked + b"\r\n5;%b\r\nhello\r\n%b\r\n" % (word, word),
        line + chunked + b"\r\n7fffffffffffffff\r\n%b" % word,
        line + chunked + length + b"\r\n" + body,
        line + usual + length + b"\r\n" + body[:-20],
        line + usual + b"content-length: 5\r\n\r\n" + body,
    ]
    return [*lines, *(line + usual + header + b"\r\n" + body for header in headers), *bodies]


# What a provider says.


MESSAGE = Ask(model=MODEL, input_tokens=9, max_tokens=100)
CHAT = ChatAsk(model=MODEL, input_tokens=9, max_tokens=100, include_usage=True)
RESPONSE = ResponseAsk(model=MODEL, input_tokens=9, max_tokens=100)
SPEECHES = (MESSAGE, CHAT, RESPONSE, EmbeddingsAsk(model=MODEL, input_tokens=9, inputs=1, dimensions=3))
STREAMS = tuple(replace(said, streams=True) for said in (MESSAGE, CHAT, RESPONSE))


def answer_headers(canaries: Canaries) -> tuple[tuple[str, str], ...]:
    """Headers that reach the client and headers that do not, a cookie among them."""
    names = ("x-request-id", "anthropic-news", "x-served-by", "openai-organization", "www-authenticate", "link")
    cookie = f"id={canaries('cookie of the provider')}; Path=/"
    return (*((name, canaries(f"header {name} of the provider")) for name in names), ("set-cookie", cookie))


def answers(canaries: Canaries) -> list[Script]:
    """Good ones, every error, and some that make no sense."""
    headers = answer_headers(canaries)
    word = canaries("answer").encode()
    whole, events = spoken(MESSAGE, word), spoken(replace(MESSAGE, streams=True), word)
    odd = b'event: %b\ndata: {"type": "message_start", "message": {"usage": "%b"}}\n\n' % (word, word)
    deep = b'data: {"type": "message_delta", "usage": ' + b"[" * 3_000 + word + b"\n\n"
    return [
        *(Script(body=spoken(said, word), content_type=JSON_TYPE) for said in SPEECHES),
        *(Script(body=spoken(said, word), content_type=SSE_TYPE) for said in STREAMS),
        *(Script(body=body, content_type=SSE_TYPE) for body in (odd + events, deep, word, b"\xff" + word)),
        *(
            Script(body=body, content_type=JSON_TYPE)
            for body in (word, b'{"usage": {"output_tokens": "%b"}}' % word)
        ),
        Script(body=word, content_type=JSON_TYPE, extra_headers=(("content-encoding", "gzip"),)),
        Script(body=events, content_type=SSE_TYPE, cut_after_bytes=len(events) // 2),
        Script(body=whole, content_type=JSON_TYPE, cut_after_bytes=len(whole) // 2, cut="close"),
        Script(error_event_after_events=3, error_message=canaries("error event")),
        *(
            Script(status=status, error_message=canaries(f"error {status}"), extra_headers=headers)
            for status in (400, 401, 402, 403, 404, 409, 413, 429, 500, 504, 529)
        ),
        Script(status=502, body=b"<html>%b</html>" % canaries("error page").encode(), content_type="text/html"),
        redirect(f"https://{canaries('redirect')}.example/"),
        Script(body=events, content_type=SSE_TYPE, extra_headers=headers),
    ]


def slow_answer(canaries: Canaries, stream: Ask | None = None) -> Script:
    """A stream that somebody can leave, or crash in, half-way; `None`: of a message."""
    events = spoken(stream or STREAMS[0], canaries("answer").encode())
    return Script(body=events, content_type=SSE_TYPE, split_bytes=300, pause_seconds=0.2)


def spoken(said: Ask, word: bytes) -> bytes:
    """A whole answer with the word all through its text, and as the model's name."""
    pieces = message_answer(Script(output_tokens=40), replace(said, model=word.decode())).pieces
    return b"".join(piece.data for piece in pieces).replace(b"the ", word + b" ")
