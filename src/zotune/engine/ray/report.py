"""What the log says of the workers at the end of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from zotune.engine.ray.crew import Seat


@dataclass
class Traffic:
    """Bytes of messages, as they are pickled; what Ray adds to each is not among them."""

    sent: int = 0
    received: int = 0
    wholes: int = 0  # of thetas and states that were sent as they are
    moves: int = 0


def table(seats: Sequence[Seat], traffic: Traffic) -> str:
    """A line for each worker, and one for what was sent."""
    lines = [
        f"{'worker':<24}{'pieces':>9}{'tokens/s':>10}{'idle':>7}{'late':>6}{'lost':>6}{'rejoined':>10}{'rebuilt':>9}"
    ]
    for seat in seats:
        pace = seat.tokens / seat.busy_s if seat.busy_s else 0.0
        idle = 1 - seat.busy_s / seat.here_s if seat.here_s else 0.0
        lines.append(
            f"{f'{seat.number} {seat.host}':<24.24}{seat.pieces:>9,}{pace:>10,.0f}{max(0.0, idle):>7.0%}{seat.late:>6}"
            f"{seat.lost:>6}{seat.rejoined:>10}{seat.rebuilt:>9}"
        )
    steps = max(1, traffic.moves)
    lines.append(
        f"messages: {traffic.sent / steps:,.0f} bytes sent and {traffic.received / steps:,.0f} received a step, all "
        f"workers together; {traffic.wholes:,} bytes of theta and state as they are"
    )
    return "\n".join(lines)
