"""What torch allows of a tensor. Called by the readers of files that say shapes of their own."""

MAX_DIMENSIONS = 64
MAX_NUMBER = 2**63 - 1  # a length, a stride, an offset
