"""Where masks and pictures go."""
