"""The demonstration: starts everything, submits a burst, watches it, checks it."""
