"""The workshop: a bundle and a Volume in, a mask on the source grid out. Never imports `volseg.networks`."""
