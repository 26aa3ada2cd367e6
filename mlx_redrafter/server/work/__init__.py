"""Between requests and the engine: prompts, answers, and the one thread that computes."""
