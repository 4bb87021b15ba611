"""What a run says about faster settings on this machine."""

import logging
import os
from pathlib import Path

from experiments.training.runtime import suggest_faster_settings

FASTER = (
    "This processor multiplies bfloat16: precision=mixed_bfloat16 trained 1.7 times as fast in a benchmark "
    "and gives another result."
)


def test_bfloat16_is_suggested_where_the_processor_multiplies_it(caplog):
    caplog.set_level(logging.INFO)
    processor = Path("/proc/cpuinfo")
    multiplies = processor.exists() and any(name in processor.read_text() for name in ("avx512_bf16", "amx_bf16"))
    suggest_faster_settings(8, "float32")
    assert caplog.messages == [FASTER] * multiplies
    caplog.clear()
    suggest_faster_settings(8, "mixed_bfloat16")
    assert caplog.messages == []


def test_more_threads_are_suggested_where_there_are_cores(caplog):
    caplog.set_level(logging.INFO)
    suggest_faster_settings(2, "mixed_bfloat16")
    assert len(caplog.messages) == (len(os.sched_getaffinity(0)) >= 8)
