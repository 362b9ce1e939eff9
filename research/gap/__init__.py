"""How far sentences lie from images in the space of a CLIP, and what perturbations do to it."""
