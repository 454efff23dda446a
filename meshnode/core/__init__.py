"""The decisions, as pure code: (event, now) -> effects, or functions of a snapshot. No IO, no clock, no threads."""
