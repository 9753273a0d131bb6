"""One run, once everything for it is chosen: the training loop and all that is in its folder.

That is the journal, the metrics, the summary, plots, and the adapter that a journal rebuilds. A run is given its
engine and its examples: what reads data (`data`) and what makes engines (`assemble`) is never imported.
"""
