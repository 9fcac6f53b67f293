"""Sessions in, vocabulary and sequences out."""
