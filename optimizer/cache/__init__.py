"""The writing side of Redis: keys, pointer, lock, results of parts, reports of runs, and publishing a version."""
