"""The method: noise, estimators, optimizers, objectives and learning rates, as pure functions of arrays.

`protocol` says what an engine must do for it. Nothing here imports PyTorch or any other folder of the package.
"""
