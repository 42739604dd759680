"""What an evaluation or a study found: as objects, as text, as figures, and as a page.

`calls` measures in one call and returns these objects. Everything else here turns what was measured
into something to read; nothing here prints.
"""
