"""The engine in this process, on PyTorch: it scores many probes at once and computes nothing twice.

`fast` is the engine and `plain` what it is tested against; the other files are parts of these. Models and devices are
all it knows: it never imports data, settings or the training loop.
"""
