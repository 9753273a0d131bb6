"""The entry point that SGLang calls in every one of its processes, also those of users who do not train here.

It registers hooks and touches nothing else. Where SGLang is not a version that zotune knows, it says so once and
leaves SGLang as it is.
"""

import logging

from zotune.engine.sglang.live import hooks
from zotune.engine.sglang.names import check
from zotune.engine.sglang.plugin import alora, cpu, cpu_attention, opt
from zotune.errors import InputError

logger = logging.getLogger("zotune")


def register() -> None:
    """Named in pyproject.toml, under sglang.srt.plugins."""
    try:
        check((*cpu.NAMES, *cpu_attention.NAMES, *opt.NAMES, *alora.NAMES, *hooks.NAMES))
    except InputError as error:
        logger.warning("zotune's SGLang plugin stays off: %s", error)
        return
    if not cpu.has_accelerator():
        cpu.register()
        cpu_attention.register()
    opt.register()
    alora.register()
    hooks.register()
