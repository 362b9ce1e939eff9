"""The world of photographs: traits, and material."""
