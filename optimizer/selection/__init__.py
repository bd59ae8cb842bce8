"""Records and bots in; the best records, holdings and counts out. No I/O."""
