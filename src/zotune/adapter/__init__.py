"""Theta as named tensors: the forms of adapters, PEFT's files, and starts from data. Imports only `zo` and errors."""
