"""The study of docs/study.md: trainings on images, captions and perturbations."""
