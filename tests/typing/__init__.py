"""What a type checker sees of the package as it is installed for users."""
