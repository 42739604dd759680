"""Real networks and data that other packages ship, as factories for `model` and `dataset`.

docs/real-networks.md uses them. Their packages come with extras of fxfault; importing this
package imports none of them, and nothing is downloaded.
"""
