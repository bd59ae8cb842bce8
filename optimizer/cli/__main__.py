"""`python -m optimizer.cli`: the command where its console script is not on the path."""

from optimizer.cli.main import main

main()
