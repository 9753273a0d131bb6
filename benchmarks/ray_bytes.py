"""The bytes of a training step on Ray: what is sent and received, by the size of the adapter and the number of probes.

    python benchmarks/ray_bytes.py

Two workers with an engine of constant scores; two-sided probes, SGD. The table goes into docs/ray.md; rows that are not
asked for stay there.
"""

import argparse
import os

os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray_constant import BATCH, constant_engine
from ray_pages import kept_rows, publish

from zotune.adapter.forms import initial_theta
from zotune.zo.estimators import ESTIMATORS
from zotune.zo.moves import Move, moved
from zotune.zo.objectives import cross_entropy
from zotune.zo.optimizers import OPTIMIZERS
from zotune.zo.protocol import Theta

STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--numbers", type=int, nargs="*", default=[300_000, 30_000_000])
    parser.add_argument("--probes", type=int, nargs="*", default=[2, 16, 64])
    options = parser.parse_args()
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=10**9,
        logging_level="ERROR",
    )
    header = [
        "numbers of the adapter", "probes", "sent a step", "received a step", "tensors a step", "tensors at the start",
        "late",
    ]  # fmt: skip
    note = f"Two workers, a batch of {len(BATCH)}, 8 pieces, mean of {STEPS} steps; as pickled."
    rows = {(row[0], int(row[1])): row for row in kept_rows("bytes", header)}
    for num_numbers in options.numbers:
        for num_probes in options.probes:
            engine = constant_engine(num_numbers, 0.0, num_workers=2, pieces=8, num_stages=2)
            estimator, optimizer = ESTIMATORS["spsa"](1e-2), OPTIMIZERS["sgd"]()
            theta: Theta = initial_theta(engine.tensor_shapes, 0)
            state = optimizer.init(theta)
            counts = []
            for step in range(STEPS + 2):
                traffic = engine.traffic
                before = traffic.sent, traffic.received, traffic.wholes
                seeds = [1000 * step + number for number in range(num_probes // 2)]
                estimate = estimator.estimate(cross_entropy, engine, theta, BATCH, seeds)
                theta, state = moved(engine, theta, state, Move(optimizer, estimate.update, 1e-4))
                counts.append(
                    [
                        now - then
                        for now, then in zip((traffic.sent, traffic.received, traffic.wholes), before, strict=True)
                    ]
                )
            sent, received, wholes = (sum(count) / STEPS for count in zip(*counts[2:], strict=True))
            late = sum(seat.late for seat in engine.seats)
            size = f"{sum(value.size for value in theta.values()):,}"
            rows[size, num_probes] = [
                size, str(num_probes), f"{sent / 1e3:.1f} kB",
                f"{received / 1e3:.1f} kB", f"{wholes:,.0f}", f"{counts[0][2] / 1e6:.1f} MB",
                str(late),
            ]  # fmt: skip
            in_order = sorted(rows.values(), key=lambda row: (len(row[0]), int(row[1])))
            publish("bytes", header, in_order, note)
            engine.close()
    ray.shutdown()


if __name__ == "__main__":
    main()
