"""Files, data and bookkeeping around the mathematics in `models/`."""
