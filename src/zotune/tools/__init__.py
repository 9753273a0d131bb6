"""Measurements of training itself: where a step's time goes, and what reuse of keys and values would do to slopes.

They watch a run and change nothing in it. The commands that show the results are never imported.
"""
