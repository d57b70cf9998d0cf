"""Models for other runtimes, one target per file."""
