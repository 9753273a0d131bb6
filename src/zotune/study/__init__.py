"""Many runs at equal budgets: comparisons of methods, and searches over settings.

Each run goes through `finetune`, as a single one does. The commands that show the results are never imported.
"""
