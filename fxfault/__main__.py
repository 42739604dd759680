"""`python -m fxfault` is the command `fxfault`."""

import sys

from fxfault.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
