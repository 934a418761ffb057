"""One paper, one file. nn.Module only: tensors in, tensors out."""
