"""Videos whose frames carry their own number, as real encoders write them."""
