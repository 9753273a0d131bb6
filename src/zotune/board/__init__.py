"""A local web page with all runs of a folder as they go: curves, settings side by side, samples. It only reads."""
