"""From settings to the parts of a run: its examples, its model and its engine.

Nothing is trained here, and what trains or shows (`finetune`, `study`, `commands`) is never imported.
"""
