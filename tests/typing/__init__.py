"""What a type checker sees of the package as users have it."""
