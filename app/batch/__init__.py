"""`quire run-batch`: the requests of a file, one a line, to a file of replies."""
