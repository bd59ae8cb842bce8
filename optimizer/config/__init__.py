"""`ROLLING_*` variables in, one frozen `Settings` a source out."""
