"""The audit of images, captions and encoders before a training (`tools/audit.py`)."""
