"""Settings that all tests share: Hypothesis without a stopwatch, and GPU tests only where there is a GPU."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Timed tests fail on busy machines only; the blob replays a failure anywhere.
settings.register_profile("house", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "house"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests where torch sees no device. torch is imported only if there are such tests."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
