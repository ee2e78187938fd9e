"""Built-in task metrics: what an owner of a model would call right."""
