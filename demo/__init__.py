"""The embedded demo: rendered faces, and the scripts that made the weights in `assets/demo`."""
