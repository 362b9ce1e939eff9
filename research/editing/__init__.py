"""How well edits by words change one trait of a face and keep the others."""
