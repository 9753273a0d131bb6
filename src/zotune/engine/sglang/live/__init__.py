"""Training on the scheduler of a server that has users: an engine elsewhere asks, and has passes when they can wait."""
