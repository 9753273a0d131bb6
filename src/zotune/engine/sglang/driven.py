"""SGLang's scheduler and requests with what differs here: no sockets, no output, and a bound on what the tree gives.

Both are subclasses, made when SGLang is imported, which takes seconds: not before a rank starts.
"""

from typing import Any

_SCHEDULER = "sglang.srt.managers.scheduler:Scheduler."
_REQ = "sglang.srt.managers.schedule_batch:Req."
NAMES = (
    "sglang.srt.managers.scheduler_components.ipc_channels:SchedulerIpcChannels",
    "sglang.srt.managers.scheduler_components.output_sender:SenderWrapper",
    "sglang.srt.managers.scheduler_components.output_streamer:SchedulerOutputStreamer.stream_output",
    _SCHEDULER + "init_ipc_channels",
    _SCHEDULER + "get_output_streamer_class",
    _REQ + "_compute_max_prefix_len",
)


def scheduler_class() -> Any:
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.managers.scheduler_components.ipc_channels import SchedulerIpcChannels
    from sglang.srt.managers.scheduler_components.output_sender import SenderWrapper
    from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer

    class Silent(SchedulerOutputStreamer):
        def stream_output(self, *args: Any, **kwargs: Any) -> None: ...

    class Driven(Scheduler):
        """Without sockets: requests come from `Driver.run`, and their results stay in them."""

        def init_ipc_channels(self, port_args: Any) -> None:
            nowhere = SenderWrapper(None)
            self.ipc_channels = SchedulerIpcChannels(
                recv_from_tokenizer=None, recv_from_rpc=None, send_to_tokenizer=nowhere, send_to_detokenizer=nowhere,
                send_metrics_from_scheduler=None,
            )  # fmt: skip
            self.load_snapshot_writer = None
            self.recv_from_tokenizer = None

        def get_output_streamer_class(self) -> type[SchedulerOutputStreamer]:
            return Silent

    return Driven


def request_class() -> Any:
    from sglang.srt.managers.schedule_batch import Req

    class Request(Req):
        max_cached: int | None = None

        def _compute_max_prefix_len(self, input_len: int) -> int:
            most = super()._compute_max_prefix_len(input_len)
            return most if self.max_cached is None else min(most, self.max_cached)

    return Request
