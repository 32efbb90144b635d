"""04: tuning a policy on a reward model (hydra, rollouts, online objectives, DPO, measurement)."""
