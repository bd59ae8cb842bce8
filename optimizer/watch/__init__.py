"""Runs that begin when the input has landed: what changed, whether it is whole, and the sending of a run for it."""
