"""`python -m dcmhaul` and the installed command."""

from __future__ import annotations

import os
import sys

from dcmhaul.cli import main

__all__ = ["main"]

# No verb computes with numpy, which would start a thread for each processor, and each spins for a while.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

if __name__ == "__main__":
    sys.exit(main())
