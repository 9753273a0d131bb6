"""From data files to token ids: records, tasks, texts and templates, each step in a file of its own.

It never imports an engine, settings or the training loop.
"""
