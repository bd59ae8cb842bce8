"""The `rolling-optimizer` command."""
