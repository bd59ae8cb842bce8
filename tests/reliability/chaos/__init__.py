"""Faults on purpose: a whole service of real processes, an engine that never stops writing, readers that never stop.

    generations.py   the input: each version of it carries its number in every record, bot and position
    pollers.py       a process that reads in seven ways and tells whatever it should never have seen
    service.py       Redis, worker, beats, engine and pollers, and how each fault is made
    figures.py       what was measured, as a table; `make chaos` writes it to docs/reliability.md

The service is treated as its users do: by `celery -A tasks`, `rolling-optimizer`, the Redis keys and the files.
"""
