"""Ray: trials in parallel, the searcher that connects agents to Ray Tune, and clusters."""
