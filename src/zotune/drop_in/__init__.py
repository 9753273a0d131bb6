"""A trainer with the interface of transformers' Trainer and TRL's SFTTrainer, on zotune's own.

`arguments` makes settings of their arguments, `callbacks` tells their callbacks, and `trainer` is what scripts use.
"""
