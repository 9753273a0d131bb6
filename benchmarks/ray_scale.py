"""How many workers a driver feeds: measured with played workers, and simulated with the same queue up to 4,096.

    python benchmarks/ray_scale.py

The driver's time for an order and its answer is measured on this machine at each number of workers: the processor time
of its process in a call of workers that answer at once, choosing pieces and Ray's part included. The simulation has a
driver that does one thing at a time, workers that compute, and the queue of `zotune.engine.ray.queue`. The table goes
into docs/ray.md.
"""

import argparse
import heapq
import os
import statistics
import time

os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray_constant import BATCH, constant_engine
from ray_pages import kept_rows, publish

from zotune.adapter.forms import initial_theta
from zotune.engine.ray.crew import ORDERS_AHEAD
from zotune.engine.ray.cut import cut
from zotune.engine.ray.queue import Handed, Paces, WorkQueue
from zotune.zo.protocol import Probe

NUM_PROBES, SECONDS = 512, 0.02


def measured(num_workers: int, pieces: int, seconds: float) -> tuple[float, float]:
    """Seconds of a call, and the driver's processor time for each of its orders; medians of three, of one where
    they are thousands."""
    engine = constant_engine(3000, seconds, num_workers, pieces)
    theta = initial_theta(engine.tensor_shapes, 0)
    asked = [Probe(seed, 1e-2) for seed in range(NUM_PROBES)]
    engine.score(theta, asked, BATCH)
    calls, of_orders = [], []
    for _ in range(3 if num_workers < 1000 else 1):
        began, used = time.perf_counter(), time.process_time()
        engine.score(theta, asked, BATCH)
        calls.append(time.perf_counter() - began)
        of_orders.append((time.process_time() - used) / engine.sharing.num_orders_of_last_call)
    engine.close()
    return statistics.median(calls), statistics.median(of_orders)


def simulated(num_workers: int, pieces: int, seconds: float, per_order_s: float) -> tuple[float, int]:
    """Seconds of a step on workers whose pace is known, and its orders."""
    sizes = [piece.size for piece in cut(NUM_PROBES, len(BATCH), pieces, by_examples=True)]
    queue = WorkQueue(sizes, [None] * len(sizes))
    paces = Paces(dict.fromkeys(range(num_workers), 1 / seconds))
    driver, orders, free = 0.0, 0, [0.0] * num_workers
    answers: list[tuple[float, int, int, Handed]] = []

    def hand(worker: int) -> None:
        nonlocal driver, orders
        handed = queue.take(worker, paces, driver)
        if handed is None:
            return
        driver += per_order_s / 2
        orders += 1
        free[worker] = max(free[worker], driver) + seconds * handed.size
        heapq.heappush(answers, (free[worker], orders, worker, handed))

    for _ in range(ORDERS_AHEAD):
        for worker in range(num_workers):
            hand(worker)
    while not queue.is_done:
        at, _, worker, handed = heapq.heappop(answers)
        driver = max(driver, at) + per_order_s / 2
        queue.answer(handed, dict.fromkeys(handed.numbers, True))
        hand(worker)
    return driver, orders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 8, 64, 512, 4096])
    parser.add_argument("--measure", type=int, nargs="*", default=[64], help="play these numbers of workers, too")
    options = parser.parse_args()
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=10**8,
        logging_level="ERROR",
    )
    header = [
        "work of a step", "workers", "pieces", "driver an order", "steps/s", "measured", "utilisation",
        "what bounds it",
    ]  # fmt: skip
    note = f"{NUM_PROBES} probes, a batch of {len(BATCH)}, four pieces a worker where there are as many pairs."
    rows = {(row[0], row[1]): row for row in kept_rows("scale", header)}
    for workers in options.workers:
        pieces = min(4 * workers, NUM_PROBES * len(BATCH))
        largest = max(piece.size for piece in cut(NUM_PROBES, len(BATCH), pieces, by_examples=True))
        per_order_s = measured(workers, pieces, 0.0)[1]  # nothing to compute: all is orders
        for seconds in (0.02, 1.0):
            work_s = NUM_PROBES * len(BATCH) * seconds
            step_s, num_orders = simulated(workers, pieces, seconds, per_order_s)
            real = "-"
            if seconds < 1 and workers in options.measure:
                real = f"{1 / measured(workers, pieces, seconds)[0]:.3g}"
            bounds = {
                "computing": work_s / workers,
                "the driver's messages": num_orders * per_order_s,
                "pieces too large": 3 * largest * seconds,
            }
            rows[f"{work_s:,.0f} s", f"{workers:,}"] = [
                f"{work_s:,.0f} s", f"{workers:,}", f"{pieces:,}", f"{1e3 * per_order_s:.2f} ms", f"{1 / step_s:.3g}",
                real, f"{work_s / workers / step_s:.0%}", max(bounds, key=bounds.__getitem__),
            ]  # fmt: skip
            in_order = sorted(rows.values(), key=lambda row: int(row[1].replace(",", "")))
            publish("scale", header, in_order, note)
    ray.shutdown()


if __name__ == "__main__":
    main()
