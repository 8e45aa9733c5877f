"""How many threads compute a step. It follows the measured time of steps.

llama.cpp's threads wait for each other several hundred times in a step. Beside a process that keeps one core busy, one of
them is often off its core, and all the others wait for it: on two cores, two threads then gave 19 tokens/s where one gave
37 (the packaged Gemma; 60 and 48 on a quiet machine). So from time to time half the threads, or a quarter more, are tried
for a few steps, and the faster count stays.
"""

from collections import deque
from collections.abc import Callable

SAMPLES = 5
"""Steps whose mean time is compared."""

LOST = 2
"""Steps after which a trial ends if it is slower so far; one step is enough if it takes this many times as long."""

FASTER = 0.9
"""Another count stays if its steps take less than this share of the time: chance must not move it to and fro."""

SLOWER = 1.3
"""Steps that take this many times as long as usual are a reason to try fewer threads at once."""

SOON, LATE = 16, 512
"""Steps between two trials: `SOON` after one that helped, twice as many as before after one that did not."""

IDLE_SECONDS = 0.5
"""After a pause as long as this the neighbour may be gone, and more threads are tried soon."""


class Threads:
    """Chooses the number of threads between one and `most`.

    Args:
        most: threads at first, and at most.
        use: called with the number to use from the next step on.
    """

    def __init__(self, most: int, use: Callable[[int], None]) -> None:
        self.count = most
        self._most, self._use = most, use
        self._try_fewer = True
        self._wait = self._left = SOON
        """Steps between two trials, and until the next one."""
        self._rows = 0
        self._times: deque[float] = deque(maxlen=SAMPLES)
        self._usual = 0.0
        """Mean time of a step, smoothed; 0 is not known."""
        self._before: tuple[int, float] | None = None
        """During a trial: the count before it, and the mean time with that count."""
        self._end = 0.0

    def measured(self, rows: int, start: float, end: float) -> None:
        """A step of this many rows was computed between these times (seconds on any clock)."""
        if self._most == 1:
            return
        if rows != self._rows:
            self._start_over(rows)
        if start - self._end > IDLE_SECONDS and self.count < self._most:
            self._wait, self._left = SOON, min(self._left, SOON)
        self._end = end
        self._times.append(end - start)
        self._left -= 1
        mean = sum(self._times) / len(self._times)
        if self._before is not None:
            self._judge(mean, *self._before)
        elif len(self._times) == SAMPLES:
            self._watch(mean)

    def _start_over(self, rows: int) -> None:
        """Steps of another size take another time: what was measured says nothing about them."""
        if self._before is not None:
            self._change(self._before[0])
            self._left = SOON
        self._rows, self._usual, self._before = rows, 0.0, None
        self._times.clear()

    def _watch(self, mean: float) -> None:
        """Begin a trial if it is time, or if steps became slow."""
        slow = self.count > 1 and 0 < self._usual * SLOWER < mean
        if slow or self._left <= 0:
            self._before = self.count, mean
            self._change(self._next(fewer=slow or self._try_fewer))
        else:
            self._usual += (mean - self._usual) * (0.1 if self._usual else 1)

    def _next(self, *, fewer: bool) -> int:
        if self.count == 1 or (self.count < self._most and not fewer):
            return min(self._most, self.count + max(1, self.count // 4))
        return self.count // 2

    def _judge(self, mean: float, count: int, before: float) -> None:
        """End a trial as soon as its result is known."""
        lost = mean >= before and (len(self._times) >= LOST or mean >= LOST * before)
        if len(self._times) < SAMPLES and not lost:
            return
        went_down = self.count < count
        if mean < FASTER * before:
            self._wait, self._usual, self._try_fewer = SOON, mean, False
        else:
            self._wait, self._usual, self._try_fewer = min(2 * self._wait, LATE), before, not went_down
            self._change(count)
        self._left, self._before = self._wait, None

    def _change(self, count: int) -> None:
        self.count = count
        self._times.clear()
        self._use(count)
