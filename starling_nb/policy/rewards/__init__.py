"""Rewards beside the learned one: rules of what a text looks like, and a judge asked yes or no."""
