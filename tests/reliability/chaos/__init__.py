"""Faults on purpose, in a whole service of real processes whose engine writes and whose readers read all the time.

    generations.py   the input: each version of it has its number in every record, bot and position
    updates.py       an engine that publishes updates
    pollers.py       a process that reads in seven ways and reports whatever readers must never see
    service.py       Redis, worker, beats, engine and pollers, and how each fault is made
    figures.py       what was measured, as a table; `make chaos` writes it to docs/reliability.md

The tests use the service as its users do: by `celery -A tasks`, `rolling-optimizer`, the Redis keys and the files.
"""
