"""One tiny model for all tests of the transformers runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return tiny.make_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Any:
    """Its tokenizer, as transformers reads it."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def reference(folder: Path) -> Any:
    """The same model in plain transformers."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


@pytest.fixture
def model(folder: Path) -> Iterator[Any]:
    """The same model in our runtime."""
    from pilotlight.runtimes.transformers import TransformersRuntime

    live = TransformersRuntime().load(tiny.context_of(folder), tiny.CPU)
    yield live
    live.close()
