"""OpusMax without one of its promises, to see what the promise costs. For the bench only: it breaks them.

    python -m bench.variants nothing-waits serve …    rows are written and synced, but nobody waits for them
    python -m bench.variants no-ledger serve …        nothing is recorded

Each replaces one method of the ledger, and all else is the same program.
"""

import asyncio
import os
import sys
from collections.abc import Callable

from gateway import cli
from gateway.core.records import LedgerRow
from gateway.ledger import Ledger

Method = Callable[[Ledger, LedgerRow], asyncio.Future[None]]


def _done() -> asyncio.Future[None]:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


def _without_waiting(method: Method) -> Method:
    def record(ledger: Ledger, row: LedgerRow) -> asyncio.Future[None]:
        method(ledger, row)
        return _done()

    return record


def _not_at_all(method: Method) -> Method:
    del method

    def record(ledger: Ledger, row: LedgerRow) -> asyncio.Future[None]:
        del ledger, row
        return _done()

    return record


VARIANTS = {"nothing-waits": _without_waiting, "no-ledger": _not_at_all}


def main() -> int:
    os.umask(0o077)  # as opusmax.py does
    change = VARIANTS[sys.argv[1]]
    Ledger.open = change(Ledger.open)  # type: ignore[method-assign, assignment]
    Ledger.settle = change(Ledger.settle)  # type: ignore[method-assign, assignment]
    return cli.main(sys.argv[2:], os.environ, sys.stdout, sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
