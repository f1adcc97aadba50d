"""A provider for tests, benchmarks and the demo: Anthropic's interface, scriptable, on a loopback socket.

    async with Simulator() as simulator:
        simulator.next(Script(status=529), Script(cut_after_events=3))      # then `simulator.script` again
        ...                                                                 # requests to simulator.origin
        assert simulator.received[-1].reported == Usage(input=8, output=12)

It remembers what it was sent and what it truly answered. It costs nothing, needs no account and invents the text.
As a process of its own: `python -m gateway.simulator --port 9000`.
"""

from gateway.simulator.provider import GATEWAY_KEY_MESSAGE, MODELS, Simulator
from gateway.simulator.scripts import HTML_502, Script, redirect
from gateway.simulator.sending import Received

__all__ = ["GATEWAY_KEY_MESSAGE", "HTML_502", "MODELS", "Received", "Script", "Simulator", "redirect"]
