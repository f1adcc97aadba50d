"""A view ticket opens one key's data for a while, and nothing else."""

from gateway.core.records import KeyRow
from gateway.core.tickets import LIFETIME_MS, MOST_TICKETS, MOST_TICKETS_OF_A_KEY, Tickets, View

KEY = View(KeyRow(7), "k7f3m2q9x4ab")
NOW = 1_790_000_000_000


def test_a_ticket_opens_the_data_of_its_key_again_and_again() -> None:
    tickets = Tickets()
    ticket = tickets.issue(KEY, NOW)
    assert [tickets.redeem(ticket, NOW + elapsed) for elapsed in (0, 1, LIFETIME_MS - 1)] == [KEY] * 3


def test_a_ticket_ends_after_its_lifetime_however_often_it_was_used() -> None:
    tickets = Tickets()
    ticket = tickets.issue(KEY, NOW)
    tickets.redeem(ticket, NOW + LIFETIME_MS - 1)
    assert tickets.redeem(ticket, NOW + LIFETIME_MS) is None
    assert tickets.redeem(ticket, NOW) is None


def test_a_ticket_that_was_never_issued_opens_nothing() -> None:
    tickets = Tickets()
    tickets.issue(KEY, NOW)
    assert tickets.redeem("", NOW) is None
    assert tickets.redeem("x" * 43, NOW) is None


def test_two_tickets_are_never_the_same_and_open_their_own_keys() -> None:
    tickets = Tickets()
    issued = {tickets.issue(View(KeyRow(row), "k"), NOW): row for row in range(100)}
    assert len(issued) == 100
    assert all(tickets.redeem(ticket, NOW) == View(KeyRow(row), "k") for ticket, row in issued.items())


def test_when_there_are_too_many_tickets_the_oldest_goes() -> None:
    tickets = Tickets(most=2)
    first, second, third = (tickets.issue(KEY, NOW + minute) for minute in range(3))
    assert tickets.redeem(first, NOW + 3) is None
    assert tickets.redeem(second, NOW + 3) == tickets.redeem(third, NOW + 3) == KEY


def test_a_key_that_asks_for_many_tickets_takes_none_from_others() -> None:
    tickets = Tickets()
    mine = tickets.issue(KEY, NOW)
    theirs = [tickets.issue(View(KeyRow(8), "k"), NOW) for _ in range(MOST_TICKETS)]
    assert tickets.redeem(mine, NOW) == KEY
    assert [tickets.redeem(ticket, NOW) is not None for ticket in theirs].count(True) == MOST_TICKETS_OF_A_KEY
    assert tickets.redeem(theirs[-1], NOW) is not None
