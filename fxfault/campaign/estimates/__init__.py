"""Estimates from the rows of a store, each with an interval.

Pure functions of rows and studies. Nothing here runs a network or reads a file.
"""
