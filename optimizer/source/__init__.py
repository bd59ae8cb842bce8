"""The bytes of the input: found, opened, inflated, and proved whole at the end."""
