"""The store of a campaign: its rows, what they were measured on, and notes for a report.

All SQL is here, and so are the checks of the values read from a store.
"""
