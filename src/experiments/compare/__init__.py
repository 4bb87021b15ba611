"""Ranks variants over their seeds, with confidence intervals and tests, as a table and as a page."""
