"""Several processes behind one run: what they tell each other, and weights in shards."""
