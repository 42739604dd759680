"""Results as lines of text, JSON, CSV and Parquet, and the progress of long commands.

A file here turns results into text. It decides neither what is run nor which files are written.
"""
