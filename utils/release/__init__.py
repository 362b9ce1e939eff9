"""A trained network leaves and comes back: release folder, diffusers, hub; read folder.py first."""
