"""Other models: tools that ask OpenAI-compatible endpoints which a person has configured."""
