"""Sets of snapshot files: encoded, written atomically, and read back, in a directory or an object store."""
