"""The package as a team adopts it: in their Celery app, with their broker, their scheduler and their modules."""
