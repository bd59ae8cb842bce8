"""Redis on the writing side: keys and pointer, the lock, parts, reports of runs, and publishing a version."""
