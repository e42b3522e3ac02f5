"""The cache of facts: what may be believed of it, and until when (consistency.md)."""
