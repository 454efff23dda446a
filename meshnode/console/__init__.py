"""The web console, as static files."""
