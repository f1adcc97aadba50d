"""How a key is told: to people as lines, to programs as values for JSON."""

from dataclasses import dataclass

from gateway.core import tables
from gateway.core.account import KeyRecord
from gateway.core.amounts import show_amount, show_budget, show_clock, show_stamp, show_time
from gateway.core.records import Budget, Key, Refusal
from gateway.core.status import BudgetStatus, LimitsStatus

CLAUDE_CODE_HOLD = 155_000
"""Tokens that Claude Code holds for a request while it runs: 128,000 of output and about 27,000 of input."""
FEW_REQUESTS = 3
"""Claude Code runs some requests at once; a budget that holds fewer than these stops it early."""
HELPFUL_OVERDRAFT = 500_000
"""Enough for them, in round figures."""

LIST_COLUMNS = (
    tables.Column("name"),
    tables.Column("key", is_whole=True, leave_out=2),
    tables.Column("state", is_whole=True),
    tables.Column("used", is_whole=True),
    tables.Column("requests", is_number=True, leave_out=1),
    tables.Column("last used", is_whole=True, leave_out=3),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyView:
    """All that the commands show of one key."""

    key: Key
    record: KeyRecord
    limits: LimitsStatus
    now_ms: int

    @property
    def prefix(self) -> str:
        """Of its newest secret."""
        return self.record.secrets[0].prefix if self.record.secrets else ""

    @property
    def state(self) -> str:
        if self.key.disabled:
            return "disabled"
        is_expired = self.key.expires is not None and self.key.expires <= self.now_ms
        return "expired" if is_expired else "active"


def list_row(view: KeyView) -> list[str]:
    """A line of `key list`, by LIST_COLUMNS."""
    return [
        view.key.name,
        view.prefix,
        view.state,
        ", ".join(f"{_budget_text(budget)} {budget.percent}%" for budget in view.limits.budgets) or "no budget",
        f"{view.record.total_requests:,}",
        "never" if view.record.last_used is None else show_time(view.record.last_used),
    ]


def show(view: KeyView) -> str:
    """The whole of `key show`."""
    facts = {
        "name": view.key.name,
        "id": str(view.key.row),
        "state": view.state,
        "created": show_time(view.key.created),
        **settings(view.key),
        "running": f"{view.limits.running:,}",
        "last used": "never" if view.record.last_used is None else show_time(view.record.last_used),
    }
    width = max(map(len, facts))
    parts = ["\n".join(f"{label:{width}}  {text}" for label, text in facts.items()), _secrets_table(view)]
    if view.limits.budgets:
        parts.append(_budgets_table(view))
    parts += [_totals_line(view.record), _refusals_line(view.record)]
    return "\n\n".join(parts)


def settings(key: Key) -> dict[str, str]:
    """What `key edit` can change, by its label."""
    return {
        "expires": "never" if key.expires is None else show_stamp(key.expires),
        "requests/min": _limit(key.requests_per_minute),
        "tokens/min": _limit(key.tokens_per_minute),
        "concurrency": _limit(key.concurrency),
        "budgets": ", ".join(map(_budget_text, key.budgets)) or "no limit",
        "overdraft": show_amount(key.overdraft),
        "models": " ".join(key.models) or "all",
    }


def differences(before: Key, after: Key) -> list[str]:
    """A line `label: old -> new` for each setting that is not the same."""
    old, new = settings(before), settings(after)
    return [f"{label}: {old[label]} -> {new[label]}" for label in old if old[label] != new[label]]


def advice(key: Key) -> list[str]:
    """What an administrator should know about the limits just set."""
    limits = (key.requests_per_minute, key.tokens_per_minute, key.concurrency, *key.budgets)
    if all(limit is None for limit in limits):
        return [f"{key.name} has no limits: it may use as many tokens as the provider gives. `key edit` sets some."]
    return [
        f"The budget {_budget_text(budget)} is small for Claude Code, which holds about {CLAUDE_CODE_HOLD:,} tokens"
        " for each request while it runs, though it uses far fewer: there is room for"
        f" {(budget.tokens + key.overdraft) // CLAUDE_CODE_HOLD} at once. With --overdraft"
        f" {show_amount(HELPFUL_OVERDRAFT)} a request may start as long as the budget is not used up, and the last"
        " ones may overshoot it by at most that."
        for budget in key.budgets
        if budget.tokens + key.overdraft < FEW_REQUESTS * CLAUDE_CODE_HOLD
    ]


def paste_lines(origin: str, key_text: str) -> list[str]:
    """What a user pastes to send a client through the gateway."""
    return [
        "Claude Code:",
        f"  export ANTHROPIC_BASE_URL={origin}",
        f"  export ANTHROPIC_AUTH_TOKEN={key_text}",
        "  export CLAUDE_CODE_USE_GATEWAY=1  # shows what is used of budgets for 5h and 7d",
        "Anthropic SDK for Python:",
        f'  client = anthropic.Anthropic(base_url="{origin}", api_key="{key_text}")',
        "OpenAI SDK for Python:",
        f'  client = openai.OpenAI(base_url="{origin}/v1", api_key="{key_text}")',
        "Codex (the table into ~/.codex/config.toml, the key into the environment):",
        '  model_provider = "opusmax"',
        "  [model_providers.opusmax]",
        '  name = "OpusMax"',
        f'  base_url = "{origin}/v1"',
        '  env_key = "OPUSMAX_KEY"',
        '  wire_api = "responses"',
        f"  export OPUSMAX_KEY={key_text}",
        f"Its usage: {origin}/usage",
    ]


def as_json(view: KeyView) -> dict[str, object]:
    """The key for `--json`; units are those of schema.sql: milliseconds, and tokens."""
    key, record = view.key, view.record
    return {
        "id": key.row,
        "name": key.name,
        "prefix": view.prefix,
        "state": view.state,
        "disabled": key.disabled,
        "created": key.created,
        "expires": key.expires,
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "concurrency": key.concurrency,
        "overdraft": key.overdraft,
        "models": list(key.models),
        "budgets": [_budget_json(budget) for budget in view.limits.budgets],
        "running": view.limits.running,
        "last_used": record.last_used,
        "totals": {
            "requests": record.total_requests,
            "input": record.total_input,
            "output": record.total_output,
            "cache_write": record.total_cache_write,
            "cache_read": record.total_cache_read,
            "charge": record.total_charge,
        },
        "refused": {reason.value: record.refused(reason) for reason in Refusal},
        "secrets": [
            {
                "key_id": secret.key_id,
                "prefix": secret.prefix,
                "created": secret.created,
                "expires": secret.expires,
            }
            for secret in record.secrets
        ],
    }


def _budget_json(budget: BudgetStatus) -> dict[str, object]:
    return {
        "tokens": budget.tokens,
        "window": budget.window_ms,
        "used": budget.used,
        "held": budget.held,
        "left": budget.left,
        "over": budget.over,
        "percent": budget.percent,
        "next_at": budget.next_at_ms,
        "all_by": budget.all_by_ms,
    }


def _secrets_table(view: KeyView) -> str:
    rows = [
        [
            secret.prefix,
            secret.key_id,
            show_time(secret.created),
            "with the key" if secret.expires is None else show_stamp(secret.expires),
        ]
        for secret in view.record.secrets
    ]
    return tables.render([*map(tables.Column, ("key", "key id", "created", "ends"))], rows)


def _budgets_table(view: KeyView) -> str:
    headings = ("budget", "used", "held", "left", "over", "percent")
    columns = [tables.Column(heading, is_number=heading != "budget") for heading in headings]
    rows = [
        [
            _budget_text(budget),
            *(f"{tokens:,}" for tokens in (budget.used, budget.held, budget.left, budget.over)),
            f"{budget.percent}%",
            _coming_back(budget, view.now_ms),
        ]
        for budget in view.limits.budgets
    ]
    return tables.render([*columns, tables.Column("coming back")], rows)


def _coming_back(budget: BudgetStatus, now_ms: int) -> str:
    if budget.next_at_ms is None or budget.all_by_ms is None:
        return "never" if budget.window_ms is None else "nothing is used"
    return f"from {show_clock(budget.next_at_ms, now_ms)}, all by {show_clock(budget.all_by_ms, now_ms)}"


def _totals_line(record: KeyRecord) -> str:
    return (
        f"{record.total_requests:,} requests so far: {record.total_input:,} input, {record.total_output:,} output,"
        f" {record.total_cache_write:,} cache write, {record.total_cache_read:,} cache read;"
        f" {record.total_charge:,} tokens counted"
    )


def _refusals_line(record: KeyRecord) -> str:
    counts = [f"{record.refused(reason):,} by {reason}" for reason in Refusal if record.refused(reason)]
    return f"Refused: {', '.join(counts) or 'none'}"


def _budget_text(budget: Budget | BudgetStatus) -> str:
    return show_budget(budget.tokens, budget.window_ms)


def _limit(amount: int | None) -> str:
    return "no limit" if amount is None else show_amount(amount)
