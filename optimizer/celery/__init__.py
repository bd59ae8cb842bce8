"""Celery's side: the app, its settings, the tasks, and senders. The only package that imports Celery."""
