"""Figures, drawn with matplotlib, which only the extra `cli` brings.

A file here draws what it is given. A command or a result decides which figures to draw, and where.
"""
