"""What lies behind ``starling-nb reproduce``: notebooks, stage keys, kernels, lock, manifest."""
