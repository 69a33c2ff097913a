"""The shapes of the version control API: what a client sends and gets."""
