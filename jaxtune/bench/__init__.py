"""`jaxtune bench`: one whole training step at real shapes, with random weights, measured."""
