"""Describe an input of unknown form: its shape, its fields, and settings under which a run reads it."""
