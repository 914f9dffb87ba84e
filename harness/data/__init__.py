"""Images: what belongs to a data set, each decoded once, and how training sees them."""
