"""From a prompt to a picture; read generate.py first."""
