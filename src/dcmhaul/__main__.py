"""`python -m dcmhaul` and the installed command."""

from __future__ import annotations

import sys

from dcmhaul.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
