"""Networks that know their training images by heart, and what the copy check says of them."""
