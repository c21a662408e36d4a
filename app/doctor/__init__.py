"""`quire doctor`: looks at the machine as `quire serve` would find it, and says what to do. Starts nothing."""
