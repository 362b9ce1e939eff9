"""How often a network shows what sentences and captions state."""
