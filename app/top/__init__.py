"""`quire top`: the state of a running server in a terminal."""
