"""What Locust's users ask, when, and how well they are to be served. Needs Locust and the standard library alone."""
