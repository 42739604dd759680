"""Where, when and how often faults strike, and what was seen of it.

The state of a transformed model is here. Nothing here strikes a value.
"""
