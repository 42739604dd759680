"""What all commands share: arguments, exit statuses, output files, progress, numbers as text.

Nothing here knows what a command is for.
"""
