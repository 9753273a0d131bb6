"""Engines score probes. They know models and devices, and nothing of training, data files or configuration."""
