"""The connection to Ray: a cluster that runs already, or a local one that ends with the engine."""

import logging
import os
from typing import Any

import ray

from zotune.engine.ray.options import RayOptions
from zotune.errors import InputError, first_line

logger = logging.getLogger("zotune")


class Session:
    """Ray as it is there, or as it is started here; what was started here is ended by `close`.

    Raises:
        InputError: there is no cluster at the address.
    """

    def __init__(self, options: RayOptions) -> None:
        self.is_ours = not ray.is_initialized()
        if not self.is_ours:
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what Ray would report elsewhere
        quiet: Any = {"log_to_driver": False, "logging_level": logging.ERROR}
        if options.address != "local":
            try:
                ray.init(address=options.address or "auto", **quiet)
                return
            except (ConnectionError, ValueError, RuntimeError) as error:
                ray.shutdown()
                if options.address is not None or "RAY_ADDRESS" in os.environ:
                    where = options.address or os.environ["RAY_ADDRESS"]
                    raise InputError(
                        f"--ray.address {where}: no cluster of Ray answers ({first_line(error)})"
                    ) from None
        # Ray's default of 15 is for work that must not disturb others; here the workers are the work.
        os.environ.setdefault("RAY_worker_niceness", "0")
        needed = (options.num_workers or 1) * options.num_cpus_per_worker
        ray.init(address="local", num_cpus=max(os.cpu_count() or 1, needed), include_dashboard=False, **quiet)

    def default_workers(self, options: RayOptions) -> int:
        """A worker for each GPU of the cluster, or for each of its machines where workers have none."""
        if options.num_gpus_per_worker:
            return max(1, int(ray.cluster_resources().get("GPU", 0) / options.num_gpus_per_worker))
        return max(1, sum(node["Alive"] for node in ray.nodes()))

    def room_on_a_node(self, options: RayOptions) -> int:
        """How many workers the roomiest machine has room for."""
        needs = {"CPU": options.num_cpus_per_worker, "GPU": options.num_gpus_per_worker or 0}
        rooms = [
            min(int(node["Resources"].get(name, 0) / need) for name, need in needs.items() if need)
            for node in ray.nodes()
            if node["Alive"]
        ]
        return max([1, *rooms])

    def close(self) -> None:
        if self.is_ours and ray.is_initialized():
            ray.shutdown()
