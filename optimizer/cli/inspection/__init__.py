"""Describe an input that may not fit: its shape, its fields, and a setting under which it does."""
