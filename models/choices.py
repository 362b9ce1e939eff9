"""Names that a configuration chooses from, each list in one place.

`get_args(Solver)` is the list itself, as a tuple of strings. Imports no torch, so that reading a
configuration stays fast.
"""

from typing import Literal

# Karras et al. 2022: Algorithm 2 with Heun or Euler steps; Lu et al. 2022: DPM-Solver++(2M).
Solver = Literal["heun", "euler", "dpmpp_2m"]
# Karras et al. 2022, table 1: time steps, noise level sigma(t), signal scale s(t).
Discretization = Literal["vp", "ve", "iddpm", "edm"]
NoiseSchedule = Literal["vp", "ve", "linear"]
SignalScaling = Literal["vp", "none"]
# How a condition is perturbed; see models/perturbation.py.
PerturbationKind = Literal["fixed", "gaussian", "uniform", "truncated", "learnable"]
# The mask ratio over the training; see utils/training/schedules.py.
MaskSchedule = Literal[
    "constant", "linear", "exp", "cosine2", "cosine3", "cosine4", "cosine5", "cosine6"
]
# What stands between the two linear layers of a block's MLP; see models/blocks.py: Mlp.
MlpKind = Literal["gelu_tanh", "gelu"]
# The optimizer of a training; see utils/training/optimizers.py.
Optimizer = Literal["adamw", "muon"]
# The weights that a training trains; see models/adapters.py.
Adaptation = Literal["all", "difffit", "lora", "condition", "difffit+condition", "lora+condition"]
# The network whose features the metrics compare; see utils/evaluation/feature_networks.py.
FeatureNetworkKind = Literal["inception", "inception-tf", "clip", "dinov2"]
# Seeds are whole numbers below it: PyTorch's CPU generator reads 32 bits, and 2^32 would repeat 0.
SEED_LIMIT = 2**32
