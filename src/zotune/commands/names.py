"""The names of all commands. Nothing is imported here, so that `zotune --help` is quick."""

COMMANDS = {
    "init": ("starting", "Init", "Write settings for your own data, to begin with."),
    "train": ("training", "Train", "Fine-tune a model."),
    "resume": ("training", "Resume", "Go on with a run that was stopped."),
    "evaluate": ("prediction", "Evaluate", "Accuracy and loss of an adapter, or of the bare model."),
    "predict": ("prediction", "Predict", "A label or completion for each line of a file or of standard input."),
    "replay": ("runs", "Replay", "The adapter as it was after any step of a run."),
    "merge": ("exporting", "Merge", "Put an adapter into the weights of its base model."),
    "export": ("exporting", "Export", "Write a GGUF file for llama.cpp, or push to the HuggingFace hub."),
    "card": ("exporting", "Card", "A model card of a run: what it is, what was measured, how it was made."),
    "plot": ("runs", "Plot", "Draw one run, or several over each other."),
    "board": ("board", "Board", "Show runs as a local web page, as they go."),
    "compare": ("studies", "Compare", "Train several methods on several tasks and seeds, at equal budgets."),
    "sweep": ("studies", "Sweep", "Search settings by successive halving."),
    "analyze": ("analysis", "Analyze", "Which epsilon to use on your model and data."),
    "profile": ("analysis", "Profile", "Where the time of a training step goes."),
    "linear-probe": ("probing", "LinearProbe", "A logistic regression on hidden states, as a baseline."),
    "submit": ("jobs", "Submit", "Train in a running SGLang server."),
    "jobs": ("jobs", "Jobs", "Look after training jobs in a running SGLang server."),
    "completion": ("completion", "Completion", "What bash, zsh or fish needs to complete commands and options."),
    "tasks": ("tasks", "Tasks", "List the built-in tasks."),
}
"""Name -> file of `commands`, class in it, and what it does."""
