"""Quire's kernels. Keep this file free of imports and of a version: transformers probes for a package of this name."""
