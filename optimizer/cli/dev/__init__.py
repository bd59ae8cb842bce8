"""The whole stack on one machine, for development and for `demo`: real processes, and a sample file."""
