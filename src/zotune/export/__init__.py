"""What comes out of a run, in the forms that others take: merged models, GGUF files, model cards, hubs.

It reads run folders and adapters, whoever made them, and trains nothing.
"""
