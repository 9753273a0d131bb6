"""Every causal architecture of transformers: right, right in a slower way, or refused; see architectures.py."""

import pytest

from tests.architectures import scan, summary
from tests.tiny_models import KINDS

FAST = ("falcon", "gpt_neo", "lfm2", "llama", "mpt", "olmoe", "phi3", "rwkv")  # of each kind of layer one
NOT_BUILT = {  # with other modalities, or more than a configuration takes to be small
    "blt", "dbrx", "dots3_note", "dots3_note_text", "gemma3", "gemma3n", "gemma4_assistant",
    "gemma4_unified_assistant", "git", "got_ocr2", "moss_transcribe_diarize", "musicgen", "musicgen_melody",
    "phi4_multimodal",
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
@pytest.mark.filterwarnings("ignore")
def test_no_number_is_wrong(kind):
    if kind in NOT_BUILT:
        pytest.skip("not built tiny")
    findings = scan(kind)
    assert all(finding.is_right for finding in findings.values()), summary(findings)
