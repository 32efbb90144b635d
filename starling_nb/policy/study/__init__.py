"""A study of policies: arms that differ in one thing each, and what their answers show."""
