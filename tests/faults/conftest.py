"""What the fault tests train on: the tiny set of the training tests."""

from test_training import faces  # noqa: F401
