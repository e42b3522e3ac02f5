"""The cache protocol of consistency.md as a transition system, explored to the last state."""
