"""Analysis: what is asked of models and runs, beside training them."""
