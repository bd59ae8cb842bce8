"""The routers' side: the current version from Redis, or from the files where Redis is away."""
