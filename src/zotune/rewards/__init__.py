"""Rewards: what a text is worth that a model wrote, by functions with the signature of TRL's GRPOTrainer.

Other modules enter by `weighted.Rewards`. What reads data and what trains is never imported, so that a process which
runs a reward starts in a fraction of a second.
"""
