"""The judge itself: what its simulated form reads here, and how far a judge can be trusted."""
