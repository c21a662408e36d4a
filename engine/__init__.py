"""The paged engine: token ids in, token ids out; and its front end, which speaks text."""
