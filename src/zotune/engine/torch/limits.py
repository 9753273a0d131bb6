"""Up to how many tokens a model treats a sequence like any other: beyond, attention or positions depend on its length.

Layers that look at a window, a chunk or the best so many keys see everything while a sequence is short enough, and
rotary scalings such as LongRoPE change all frequencies where one becomes longer than the first context.
"""

import re
from collections.abc import Iterator, Mapping

from transformers import PretrainedConfig

_NAMES = re.compile(r"window|chunk|budget|block_size|^local_attention$|topk$|^original_max_position_embeddings$")
_COUNTS = re.compile(r"layers|pattern|num_|experts|group|moe")  # of other things than tokens


def length_limit(config: PretrainedConfig) -> int | None:
    """The smallest such length in the model's configuration, or None."""
    return min(_lengths(config.get_text_config().to_dict()), default=None)


def _lengths(values: Mapping[str, object]) -> Iterator[int]:
    for name, value in values.items():
        if isinstance(value, Mapping) and not value.get("model_type"):  # no model of its own
            yield from _lengths(value)
        elif type(value) is int and value > 1 and _NAMES.search(name) and not _COUNTS.search(name):
            yield value
