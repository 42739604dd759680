"""Figures, drawn with matplotlib.

A file here draws what it is given. The command decides which figures it writes, and where.
"""
