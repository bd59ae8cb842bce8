"""Sets of snapshot files: encoded, written as one, read back, in a directory or an object store."""
