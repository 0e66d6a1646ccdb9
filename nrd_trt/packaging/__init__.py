"""A bundle for other people's servers and pipelines: `package`."""
