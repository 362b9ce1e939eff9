"""How varied the images of a short sentence are: docs/freedom.md."""
