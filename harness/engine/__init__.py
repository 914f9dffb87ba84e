"""One trial, from images to predictions."""
