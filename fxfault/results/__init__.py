"""What an evaluation or a study found: as objects, as text, as figures, and as a page.

A file here turns results into something to read. It neither prints nor decides what is run.
"""
