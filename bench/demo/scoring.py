def score(*a, **k): return {}
