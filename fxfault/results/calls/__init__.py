"""What is asked of a network in one call: an evaluation, a sweep, a ranking of layers, a study.

The calls return objects of `fxfault.results`. The commands measure by the same functions.
"""
