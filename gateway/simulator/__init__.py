"""A provider for tests, benchmarks and the demo: Anthropic's and OpenAI's interfaces, on a loopback socket.

    async with Simulator() as simulator:
        simulator.next(Script(status=529), Script(cut_after_events=3))      # then `simulator.script` again
        simulator.when(Script(status=429, retry_after_seconds=7), credential="a", model="gpt-5.6")
        ...                                                                 # requests to simulator.origin
        assert simulator.received[-1].reported == Usage(input=8, output=12)

It remembers what it was sent and what it truly answered. It costs nothing, needs no account and invents the text.
As a process of its own: `python -m gateway.simulator --port 9000`.

One request through its files:

    provider.py     the server: who is let in, and which script is for whom
    requests.py     what is asked for (openai_requests.py, catalog.py)
    scripts.py      what was told; content.py: what the answer thus says
    answers.py      its shape: messages.py, chat.py, responses.py and response_items.py, embeddings.py
    protocols.py    the headers and errors around it
    pieces.py       how it is cut and divided
    sending.py      how it is written, and the record that stays
"""

from gateway.simulator.catalog import MODELS, OPENAI_MODELS
from gateway.simulator.protocols import ANTHROPIC, OPENAI
from gateway.simulator.provider import GATEWAY_KEY_MESSAGE, Simulator
from gateway.simulator.scripts import HTML_502, Script, redirect
from gateway.simulator.sending import Received

__all__ = [
    "ANTHROPIC",
    "GATEWAY_KEY_MESSAGE",
    "HTML_502",
    "MODELS",
    "OPENAI",
    "OPENAI_MODELS",
    "Received",
    "Script",
    "Simulator",
    "redirect",
]
