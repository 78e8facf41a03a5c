"""Models of a few hundred lines without weights, for a first run and for tests."""
