"""One run: from the input to published files and Redis, in this process or distributed over workers."""
