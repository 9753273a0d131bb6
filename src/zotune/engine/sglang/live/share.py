"""How much of a server's time training gets: all of it where nobody else is there, else a share, in short passes."""

import time
from collections.abc import Callable

LINGER_S = 0.5  # users are taken to be there so long after the last of their requests
PASS_S = 0.02  # a pass of training delays a user's request by so long
IDLE_PASS_S = 0.1  # where no user is there
MIN_TOKENS = 16
IDLE_MIN_TOKENS = 64  # a pass of fewer takes hardly less time on a CPU: it reads all weights
SAVED_S = 0.1  # of its share that training may save up
RECENT_S = 10.0  # of which `recent` speaks, about


class Share:
    """Keeps account of one scheduler.

    Args:
        share: of the time with users; 0 is none of it.
        clock: seconds.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.share = share
        self.training_s = self.users_s = 0.0  # training's own, and how long users were there
        self._clock = clock
        self._last = clock()
        self._seen = -LINGER_S  # when users were last there
        self._saved = 0.0
        self._tokens_a_second = 2000.0
        self._step_s = 0.01  # of what is done without a pass
        self._marks = [(self._last, 0.0)]  # a time, and `training_s` then
        self.recent = 0.0  # training's part of the scheduler's time of late

    def tick(self, users: bool) -> None:
        """Time goes on; whether users' requests are there now."""
        now = self._clock()
        if users:
            self._seen = now
        if self.with_users:
            self.users_s += now - self._last
            self._saved = min(self._saved + self.share * (now - self._last), SAVED_S)
        self._last = now
        if now - self._marks[-1][0] >= RECENT_S / 10:
            self._marks = [*self._marks[-9:], (now, self.training_s)]
            began, before = self._marks[0]
            self.recent = (self.training_s - before) / (now - began)

    @property
    def with_users(self) -> bool:
        return self._clock() - self._seen < LINGER_S

    @property
    def may_run(self) -> bool:
        return not self.with_users or self._saved > 0

    @property
    def most_tokens(self) -> int:
        """Of the next pass, so that it takes its time and no more."""
        least = MIN_TOKENS if self.with_users else IDLE_MIN_TOKENS
        return max(least, int(self._tokens_a_second * self._pass_s))

    @property
    def most_steps(self) -> int:
        """Without a pass."""
        return max(1, int(self._pass_s / self._step_s))

    @property
    def _pass_s(self) -> float:
        return PASS_S if self.with_users else IDLE_PASS_S

    def ran(self, seconds: float, steps: int, tokens: int) -> None:
        """Steps of training, of which the last may have been a pass of so many tokens."""
        self.training_s += seconds
        if self.with_users:
            self._saved -= seconds
        if tokens:
            self._tokens_a_second += 0.3 * (tokens / max(seconds, 1e-4) - self._tokens_a_second)
        else:
            self._step_s += 0.3 * (max(seconds, 1e-4) / steps - self._step_s)
