"""Layer maths and nnx modules; the only callers of kernels."""
