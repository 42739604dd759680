"""All code that knows the layers and tensors of Brevitas, except the built-in networks.

Support for another quantiser library would go here.
"""
