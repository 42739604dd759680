"""Paths and files: reads up to a limit, atomic writes, and locks on the files themselves."""
