"""The number of threads against machines whose steps take a made-up time."""

from collections.abc import Callable

import pytest

from lfx_local_runtimes.runtimes.engines.llama_cpp.threads import IDLE_SECONDS, LATE, SAMPLES, SOON, Threads

Cost = Callable[[int], float]
"""Seconds of a step, by the number of threads."""


class Machine:
    """Runs steps and keeps the clock."""

    def __init__(self, most: int) -> None:
        self.used = most
        self.now = 100.0
        self.threads = Threads(most, self._use)

    def _use(self, count: int) -> None:
        self.used = count

    def run(self, steps: int, cost: Cost, rows: int = 1) -> float:
        """Returns the seconds taken."""
        begin = self.now
        for _ in range(steps):
            start = self.now
            self.now += cost(self.used)
            self.threads.measured(rows, start, self.now)
        return self.now - begin


def quiet(threads: int) -> float:
    return 0.026 / threads


def beside_one_busy_process(threads: int) -> float:
    return 0.024 if threads == 1 else 0.045


def test_a_quiet_machine_is_used_in_full_and_trials_cost_next_to_nothing() -> None:
    machine = Machine(2)
    machine.run(3000, quiet)
    assert machine.run(5000, quiet) < 1.01 * 5000 * quiet(2)
    assert machine.used == 2


def test_a_neighbour_is_noticed_and_so_is_its_end() -> None:
    machine = Machine(2)
    machine.run(5000, quiet)
    machine.run(3 * SAMPLES, beside_one_busy_process)
    assert machine.used == 1
    assert machine.run(1000, beside_one_busy_process) < 1.03 * 1000 * beside_one_busy_process(1)
    machine.run(LATE + SAMPLES, quiet)
    assert machine.used == 2


def test_a_neighbour_that_was_there_first_is_noticed() -> None:
    machine = Machine(2)
    machine.run(2 * SOON, beside_one_busy_process)
    assert machine.used == 1


def test_after_a_pause_more_threads_are_tried_soon() -> None:
    machine = Machine(2)
    machine.run(3000, beside_one_busy_process)
    machine.now += 2 * IDLE_SECONDS
    machine.run(SOON + SAMPLES, quiet)
    assert machine.used == 2


def test_a_trial_that_takes_twice_as_long_ends_after_one_step() -> None:
    machine = Machine(2)
    machine.run(3000, beside_one_busy_process)
    assert machine.used == 1
    while machine.used == 1:
        machine.run(1, beside_one_busy_process)
    machine.run(1, lambda threads: 0.1)
    assert machine.used == 1


@pytest.mark.parametrize(("cores", "taken", "found"), [(8, 3, {5}), (8, 1, {7}), (4, 1, {3}), (16, 1, {14, 15})])
def test_of_many_cores_the_free_ones_are_found(cores: int, taken: int, found: set[int]) -> None:
    """With more threads than cores are free, one always waits for half of a time slice."""
    machine = Machine(cores)
    machine.run(600, lambda threads: (1 if threads <= cores - taken else 4) * 0.1 / threads)
    assert machine.used in found


def test_a_difference_that_may_be_chance_changes_nothing() -> None:
    machine = Machine(2)
    machine.run(2000, lambda threads: 0.019 if threads == 1 else 0.02)
    assert machine.used == 2


def test_steps_of_other_sizes_are_not_compared() -> None:
    machine = Machine(2)
    for rows in (1, 8) * 200:
        machine.run(3, lambda threads, rows=rows: rows * quiet(threads), rows)  # type: ignore[misc]
        assert machine.used == 2


def test_a_trial_that_other_sizes_interrupt_is_taken_back() -> None:
    machine = Machine(2)
    while machine.used == 2:
        machine.run(1, quiet)
    machine.run(1, quiet, rows=4)
    assert machine.used == 2


def test_one_thread_stays_one() -> None:
    machine = Machine(1)
    machine.run(100, quiet)
    assert machine.used == 1


def test_one_thread_that_becomes_slow_does_not_ask_for_more() -> None:
    """Two models that share two cores would answer each other's second thread with their own."""
    machine = Machine(2)
    machine.run(3000, beside_one_busy_process)
    machine.threads._left = LATE
    machine.run(100, lambda threads: 0.05)
    assert machine.used == 1
