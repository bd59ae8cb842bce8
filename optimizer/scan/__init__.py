"""Chunks of JSON in, records, bots and rejects out. No I/O."""
