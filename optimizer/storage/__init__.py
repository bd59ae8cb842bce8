"""Paths, URLs and object stores, and what their failures mean."""
