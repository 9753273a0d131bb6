"""From data files to token ids: tasks, templates, records, and their order."""
