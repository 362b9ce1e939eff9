"""What trainings learn from images, captions and perturbations: docs/study.md."""
