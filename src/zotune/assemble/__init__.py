"""From settings to the parts of a run: its data, its model, and an engine around it.

Everything that can be refused is refused before weights are read, the cheap things first.
"""
