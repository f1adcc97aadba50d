"""A view ticket opens one key's data for a while, and nothing else."""

from gateway.core.records import KeyRow
from gateway.core.tickets import LIFETIME_MS, Tickets

KEY = KeyRow(7)
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
    issued = {tickets.issue(KeyRow(row), NOW): row for row in range(100)}
    assert len(issued) == 100
    assert all(tickets.redeem(ticket, NOW) == row for ticket, row in issued.items())


def test_when_there_are_too_many_tickets_the_oldest_goes() -> None:
    tickets = Tickets(most=2)
    first, second, third = (tickets.issue(KEY, NOW + minute) for minute in range(3))
    assert tickets.redeem(first, NOW + 3) is None
    assert tickets.redeem(second, NOW + 3) == tickets.redeem(third, NOW + 3) == KEY
