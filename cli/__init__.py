"""Commands: parsing, printing and exit codes only."""
