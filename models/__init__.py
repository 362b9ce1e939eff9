"""The mathematics: network, preconditioning and loss, samplers, perturbation, autoencoder, CLIP."""
