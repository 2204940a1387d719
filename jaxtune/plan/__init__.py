"""`jaxtune plan`: what a training step will take, without a GPU and without weights."""
