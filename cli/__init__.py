"""Commands: parsing, printing and exit codes only."""

from fxfault.cli.terminal import interrupts

interrupts.install()  # Before anything is imported that takes its time.
