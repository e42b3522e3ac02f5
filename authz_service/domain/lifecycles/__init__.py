"""What reaches across concerns: cascades and the parts of new objects, one file per concern."""
