"""From a prompt to an image; read generate.py first."""
