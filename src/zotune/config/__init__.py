"""The settings of a run: what can be asked for, the checks of it, and what is chosen where nothing is asked.

No data and no model are opened here, and the training loop and the commands are never imported.
"""
