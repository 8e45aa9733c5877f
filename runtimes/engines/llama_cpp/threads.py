"""How many threads compute a step. It follows the measured time of steps.

llama.cpp's threads wait for each other several hundred times in a step. Beside a process that keeps one core busy, one of
them is often off its core, and all the others wait for it: two threads on two cores then took 36 to 45 ms a token where
one took 24 (the packaged Gemma; on a quiet machine 15 and 20). So the count is tried one lower or one higher from time to
time, and the faster count stays.
"""

from collections import deque
from collections.abc import Callable

SAMPLES = 5
"""Steps whose mean time is compared."""

LOST = 2
"""Steps after which a trial that is slower so far is over."""

FASTER = 0.9
"""Another count is kept if its steps take less than this share of the time: chance must not move it to and fro."""

SLOWER = 1.3
"""Steps that take this many times as long as usual are a reason to try another count at once."""

SOON, LATE = 16, 512
"""Steps between two trials: fewer after a trial that helped, twice as many after one that did not."""

IDLE_SECONDS = 0.5
"""After a pause as long as this the neighbour may be gone: a lowered count is tried higher soon."""


class Threads:
    """Chooses the number of threads between one and `most`.

    Args:
        most: threads at first, and at most.
        use: called with the number to use from the next step on.
    """

    def __init__(self, most: int, use: Callable[[int], None]) -> None:
        self.count = most
        self._most, self._use = most, use
        self._direction = -1
        self._wait = self._left = SOON
        """Steps between two trials, and until the next one."""
        self._rows = 0
        self._times: deque[float] = deque(maxlen=SAMPLES)
        self._usual = 0.0
        """Mean time of a step, smoothed; 0 is not known."""
        self._before: float | None = None
        """During a trial: the mean time at the count before it."""
        self._end = 0.0

    def measured(self, rows: int, start: float, end: float) -> None:
        """A step of this many rows was computed between these times (seconds on any clock)."""
        if self._most == 1:
            return
        if rows != self._rows:
            self._compare_anew(rows)
        if start - self._end > IDLE_SECONDS and self.count < self._most:
            self._wait = SOON
            self._left = min(self._left, SOON)
        self._end = end
        self._times.append(end - start)
        self._left -= 1
        mean = sum(self._times) / len(self._times)
        if self._before is not None:
            self._judge(mean)
        elif len(self._times) < SAMPLES:
            return
        elif self._left <= 0:
            self._try(mean)
        elif self._usual and mean > SLOWER * self._usual:
            self._direction = -1
            self._try(mean)
        else:
            self._usual += (mean - self._usual) * (0.1 if self._usual else 1)

    def _compare_anew(self, rows: int) -> None:
        """Steps of another size take another time."""
        if self._before is not None:
            self._move(-self._direction)
        self._rows, self._usual, self._before = rows, 0.0, None
        self._times.clear()

    def _try(self, mean: float) -> None:
        if not 1 <= self.count + self._direction <= self._most:
            self._direction = -self._direction
        self._before = mean
        self._move(self._direction)

    def _judge(self, mean: float) -> None:
        assert self._before is not None
        lost = len(self._times) >= LOST and mean >= self._before
        if len(self._times) < SAMPLES and not lost:
            return
        if mean < FASTER * self._before:
            self._wait, self._usual = SOON, mean
        else:
            self._wait, self._usual = min(2 * self._wait, LATE), self._before
            self._move(-self._direction)
            self._direction = -self._direction
        self._left, self._before = self._wait, None

    def _move(self, by: int) -> None:
        self.count += by
        self._times.clear()
        self._use(self.count)
