"""`key simulate`: limits tried on what a key has done already."""

import click

from gateway import admin_simulation
from gateway.admin_simulation import Trial
from gateway.cli_limits import LIMIT, Cleared, fields_given, use_options
from gateway.cli_options import Call, ExamplesFirst, common_options, pass_call, time_since


@click.command(
    cls=ExamplesFirst,
    examples="""
    opusmax.py key simulate alice --budget 1M/5h
    opusmax.py key simulate alice --budget 1M/5h --hold 91k --overdraft 300k --since 7d
    opusmax.py key simulate alice --budget none --requests-per-minute 30 --concurrency 2
    opusmax.py key simulate alice --json
    """,
)
@click.argument("text", metavar="KEY")
@use_options
@click.option("--since", default="30d", metavar="DURATION", help="How far to look back. [default: 30d]")
@click.option(
    "--hold", type=LIMIT, metavar="N", help="Tokens that each request holds at least. [default: what it used]"
)
@common_options
@pass_call
def simulate(call: Call, /, text: str, since: str, hold: object, **options: object) -> int:
    """How often a key would have been refused under other limits.

    Replays its requests in the order in which they came. A limit that is not named is tried as the key has it, and
    `none` leaves one out; all budgets are replaced together. Nothing is changed.
    """
    trial = Trial(
        limits=fields_given(options),
        since_ms=time_since(call, since),
        least_hold=0 if hold is None or isinstance(hold, Cleared) else int(str(hold)),
    )
    return call.say(call.run(lambda c: admin_simulation.simulate_key(c, text, trial)))
