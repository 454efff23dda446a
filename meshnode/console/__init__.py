"""The web console: the page under `static/`, and what serves it. The page asks the control API for everything else."""
