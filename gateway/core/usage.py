"""What a request used, and what of it counts.

A budget counts input, cache write and output tokens in full and cache reads at one tenth, rounded up for
each request: the ratio at which providers bill reads (Anthropic's price list). An agent that reads its whole
context back from the cache each turn would otherwise use up a budget with tokens that cost next to nothing.

    Usage(input=100, output=50, cache_write=20, cache_read=1_001).charge == 100 + 50 + 20 + 101
"""

import msgspec

CACHE_READS_PER_TOKEN = 10
"""So many tokens read from the cache count as one."""


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The four token counts of a request; never negative."""

    input: int = 0
    """Input tokens that were neither read from nor written to a cache."""
    output: int = 0
    cache_write: int = 0
    cache_read: int = 0

    @property
    def charge(self) -> int:
        """Tokens that count against budgets and tokens/min."""
        return self.input + self.cache_write + self.output + -(-self.cache_read // CACHE_READS_PER_TOKEN)


NO_USAGE = Usage()
