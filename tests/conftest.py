"""Settings that all tests share: Hypothesis without a stopwatch, and GPU tests only where there is a GPU."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Timed tests fail on busy machines only; the blob replays a failure anywhere.
settings.register_profile("house", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "house"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Workers that tests start keep their copies of model files away from the user's."""
    os.environ.setdefault("PILOTLIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests where torch sees no device. torch is imported only if there are such tests."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
