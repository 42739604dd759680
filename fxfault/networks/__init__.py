"""Real networks and data that other packages ship, as factories for `model` and `dataset`.

The pages in docs/networks use them. Their packages come with extras of fxfault; importing this
package imports none of them, and nothing is downloaded.
"""
