"""Results and truth in, numbers out. Imports no network: anyone can re-derive the figures from saved masks."""
