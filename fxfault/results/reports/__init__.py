"""Results as lines of text, JSON, CSV and Parquet.

A file here turns results into text. It neither prints, nor decides what is run or written.
"""
