"""Generation on the training forward, with a key/value cache."""
