"""The routers' side: the current version, from Redis, or from the files while Redis is away."""
