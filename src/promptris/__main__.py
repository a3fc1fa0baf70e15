"""`python -m promptris` is the `promptris` command."""

from __future__ import annotations

import sys

from promptris.interfaces.cli import main

if __name__ == "__main__":
    sys.exit(main())
