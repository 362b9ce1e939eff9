"""All that may be set, and how it is read; read sections.py first."""
