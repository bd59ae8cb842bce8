"""`CelerySender` under the name by which backends import it; the code is in `optimizer.celery.sender`."""

from optimizer.celery.sender import CelerySender

__all__ = ["CelerySender"]
