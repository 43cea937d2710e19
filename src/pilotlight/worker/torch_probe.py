"""`python -m pilotlight.worker.torch_probe`: what torch was built for, as a line of JSON.

A process of its own, because an agent must not import torch: it takes seconds and hundreds of megabytes.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def main() -> int:
    """Print `{"cuda": …, "arches": […]}`: the CUDA of the build (`none`: for CPUs; empty: another maker's), and what it
    has code for."""
    flags: str | None
    torch: Any = importlib.import_module("torch")
    version = torch.version
    cuda = version.cuda or ("" if getattr(version, "hip", None) else "none")
    arches: Any = list(torch.cuda.get_arch_list())
    if cuda not in {"", "none"} and not arches:  # it tells nothing where the driver is too old, but was built for some
        flags = torch._C._cuda_getArchFlags() if hasattr(torch, "_C") else ""  # noqa: SLF001 - no public name has it
        arches = (flags or "").split()
    sys.stdout.write(json.dumps({"cuda": cuda, "arches": arches}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
