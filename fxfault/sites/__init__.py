"""The state of a transformed model: where, when and how often faults strike, and statistics.

Nothing here strikes a value.
"""
