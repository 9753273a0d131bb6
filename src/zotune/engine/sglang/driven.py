"""SGLang's scheduler, requests and sampler with what differs here.

There are no sockets and no output, a bound on what the tree gives, and tokens are chosen as the other engines choose
them. All are subclasses, made when SGLang is imported, which takes seconds: not before a rank starts.
"""

from typing import Any

import numpy as np
import torch

from zotune.engine.torch.token_choice import TokenChoice

_SCHEDULER = "sglang.srt.managers.scheduler:Scheduler."
_REQ = "sglang.srt.managers.schedule_batch:Req."
NAMES = (
    "sglang.srt.plugins:load_plugins",
    "sglang.srt.runtime_context:publish",
    "sglang.srt.runtime_context:SpawnRanks",
    "sglang.srt.server_args:ServerArgs.resolve_once",
    "sglang.srt.server_args:PortArgs",
    "sglang.srt.managers.scheduler_components.ipc_channels:SchedulerIpcChannels",
    "sglang.srt.managers.scheduler_components.output_sender:SenderWrapper",
    "sglang.srt.managers.scheduler_components.output_streamer:SchedulerOutputStreamer.stream_output",
    _SCHEDULER + "init_ipc_channels",
    _SCHEDULER + "get_output_streamer_class",
    _REQ + "_compute_max_prefix_len",
    "sglang.srt.layers.sampler:Sampler.forward",
)


def own_scheduler(options: dict[str, Any], rank: int, port: int) -> Any:
    """A scheduler of our own.

    Args:
        options: fields of SGLang's ServerArgs.
    """
    from sglang.srt.plugins import load_plugins
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import PortArgs, ServerArgs

    load_plugins()
    arguments = ServerArgs(**options)
    arguments.resolve_once()
    gpu_id = arguments.base_gpu_id + rank * arguments.gpu_id_step
    publish(arguments, role="scheduler", ranks=SpawnRanks(world_rank=rank, dp_rank=None, gpu_id=gpu_id))
    ports = PortArgs(
        tokenizer_ipc_name="", scheduler_input_ipc_name="", detokenizer_ipc_name="", nccl_port=port,
        rpc_ipc_name="", metrics_ipc_name="", tokenizer_worker_ipc_name=None, decoupled_spec_ipc_config=None,
    )  # fmt: skip
    return _scheduler_class()(arguments, ports)


def _scheduler_class() -> Any:
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
        is_training = True

        def _compute_max_prefix_len(self, input_len: int) -> int:
            most = super()._compute_max_prefix_len(input_len)
            return most if self.max_cached is None else min(most, self.max_cached)

    return Request


def sampler_class() -> Any:
    from sglang.srt.layers.sampler import Sampler

    class Chooser(Sampler):
        """Chooses by `choice`, where there is one, the next tokens of `rows`: the prompt and place of each."""

        choice: TokenChoice | None = None
        rows: tuple[np.ndarray, np.ndarray] = np.empty(0, dtype=int), np.empty(0, dtype=int)

        def forward(self, logits_output: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            if self.choice is None:
                tokens: torch.Tensor = super().forward(logits_output, *args, **kwargs)
                return tokens
            logits, (prompts, places) = logits_output.next_token_logits, self.rows
            assert len(logits) == len(prompts)
            return torch.from_numpy(self.choice.tokens(logits, prompts, prompts, places)).to(logits.device)

    return Chooser
