"""Plain, slow, literal implementations that the product is held equal to."""
