"""Which exit and draft length are fastest: every pair of a grid (sweep), or a search (tune)."""
