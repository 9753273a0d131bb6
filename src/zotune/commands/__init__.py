"""The commands: each a dataclass of its options, whose docstrings are its help, with a `run`.

PyTorch is imported in `run`, after the options are checked: it takes seconds.
"""
