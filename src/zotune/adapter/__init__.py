"""What is trained, as named tensors (theta): the forms of adapters, where they start, and PEFT's files.

Only the method (`zo`) stands below it: it never imports an engine, data, settings or the training loop.
"""
