"""Paths and files: read to a limit, written whole or not at all, locked by the file itself."""
