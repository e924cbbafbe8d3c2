"""One experiment: from a config to a run directory with a trained and judged backbone."""
