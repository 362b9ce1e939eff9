"""The trainings of the demo's CLIP and VAE, whose weights are in assets/demo/."""
