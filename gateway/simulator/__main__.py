"""The simulated provider as a process of its own; prints its origin and serves until Ctrl-C."""

import argparse
import asyncio
import contextlib
import sys

from gateway.simulator import ANTHROPIC, OPENAI, Script, Simulator

_PROTOCOLS = {"both": None, "anthropic": ANTHROPIC, "openai": OPENAI}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gateway.simulator", description="A simulated provider.")
    parser.add_argument("--port", type=int, default=0, help="0: a free one; it is printed")
    parser.add_argument("--output-tokens", type=int, default=Script().output_tokens)
    parser.add_argument("--events", type=int, default=Script().events, help="deltas of a streamed answer")
    parser.add_argument("--pause", type=float, default=0, metavar="SECONDS", help="between events")
    parser.add_argument("--protocol", choices=_PROTOCOLS, default="both")
    return parser.parse_args()


async def _serve(arguments: argparse.Namespace) -> None:
    protocol = _PROTOCOLS[arguments.protocol]
    async with Simulator(
        port=arguments.port, protocol=protocol, remember_bodies=False, remember_requests=False
    ) as simulator:
        simulator.script = Script(
            output_tokens=arguments.output_tokens, events=arguments.events, pause_seconds=arguments.pause
        )
        sys.stdout.write(f"{simulator.origin}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(_arguments()))
