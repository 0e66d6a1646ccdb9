"""The command line: one module per verb, shared options in `common`. Verbs import the rooms they need when they run."""
