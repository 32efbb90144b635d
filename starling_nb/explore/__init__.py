"""Looking at what a run made, by hand: talk to its models, page through its rows."""
