"""Disk -> nouns. Nothing here imports torch, but for `monai_reader`, which is MONAI's door."""
