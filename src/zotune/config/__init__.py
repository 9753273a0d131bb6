"""Settings: what was asked (`settings`), what may not be said (`checks`), and what holds in a run (`run`).

Nothing here imports PyTorch, so that a wrong setting is refused at once.
"""
