"""The input: opened by its location, inflated, and verified to be complete at the end."""
