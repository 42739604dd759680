"""The report of a store as one web page, which needs no network connection and no other file.

It turns estimates and pictures into HTML, and computes neither.
"""
