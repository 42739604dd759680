"""`python -m fxfault` is the command `fxfault`."""

import sys

from fxfault.cli.main import main

sys.exit(main())
