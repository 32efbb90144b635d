"""Stage 01: Nectar. Prompts, responses, ranking prompts, verdicts and the data set they make."""

from starling_nb.nectar import judging as judging  # the simulated judge learns to read ranking prompts
