"""The input: opened by its location, inflated, and proved whole at the end."""
