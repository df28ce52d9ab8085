"""Which deaths of an engine process end in another start, and after how long."""

from __future__ import annotations

from opsin_server.ipc.restart_policy import RestartPolicy


def served(most: int = 3, steady: float = 100.0) -> RestartPolicy:
    """The policy of an engine that has loaded, at second 0."""
    policy = RestartPolicy(most, steady)
    policy.ready(0.0)
    return policy


def test_what_has_never_loaded_is_given_up_at_once() -> None:
    assert RestartPolicy().died(1.0) is None


def test_the_first_death_is_answered_at_once_and_further_ones_later_and_later() -> None:
    policy = served(most=9)
    assert [policy.died(1.0) for _ in range(9)] == [0.0, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0]


def test_too_many_deaths_in_a_row_are_the_end() -> None:
    policy = served(most=3)
    assert None not in [policy.died(1.0) for _ in range(3)]
    assert policy.deaths == 3
    assert policy.died(1.0) is None


def test_a_request_that_finishes_ends_a_row() -> None:
    policy = served(most=2)
    for _ in range(5):
        policy.died(1.0)
        policy.ready(2.0)
        policy.died(3.0)
        policy.ready(4.0)
        policy.progressed()
        assert policy.deaths == 0
    assert policy.died(5.0) == 0.0


def test_being_ready_for_long_ends_a_row() -> None:
    policy = served(most=2, steady=100.0)
    policy.died(1.0)
    policy.died(1.0)
    policy.ready(10.0)
    assert policy.died(110.5) == 0.0
    assert policy.deaths == 1
    policy.ready(120.0)
    policy.died(220.0)
    assert policy.deaths == 2, "not a moment longer than steady"


def test_loading_for_long_does_not_count_as_being_ready() -> None:
    policy = served(most=2, steady=100.0)
    assert policy.died(1.0) == 0.0
    assert policy.died(500.0) == 0.4
    assert policy.died(1000.0) is None
