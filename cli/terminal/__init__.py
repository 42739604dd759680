"""What all commands share: arguments, exit statuses, output files, and progress.

Nothing here computes a result.
"""
