"""What a campaign measures: the study file, its axes and its cells.

Plain values; importing them does not import torch.
"""
