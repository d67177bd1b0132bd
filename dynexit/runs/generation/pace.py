"""How many rounds of decoding run between two looks at what was written."""

import time

from dynexit.decoding.session import Session, Written

SECONDS = 0.05  # between two looks
MOST = 64


class Pace:
    """Rounds between two looks: as many as take about 0.05 s.

    Example:
      >>> pace = Pace()
      >>> pace.rounds
      1
    """

    def __init__(self) -> None:
        self.rounds = 1

    def run(self, session: Session) -> list[Written]:
        """Runs the next rounds, and returns what every request has so far."""
        begun, before = time.perf_counter(), session.rounds
        session.run(self.rounds)
        found = session.progress()
        each = (time.perf_counter() - begun) / max(1, session.rounds - before)
        # at most twice as many as before: the first look may have waited for a compilation
        self.rounds = max(1, min(int(SECONDS / max(each, 1e-9)), 2 * self.rounds, MOST))
        return found
