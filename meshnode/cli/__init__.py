"""The command line. The only layer that prints; it talks to a running node over /api/*."""
