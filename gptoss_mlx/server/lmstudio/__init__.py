"""LM Studio's REST API v0: OpenAI's answers, with more told of the model and the time taken."""
